"""The seams: what a broker, a database, an observer and a clock have to offer the engine."""
