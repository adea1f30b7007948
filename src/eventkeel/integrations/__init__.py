"""Other libraries' objects on Eventkeel's transactions. Each module is imported only where it is asked for."""
