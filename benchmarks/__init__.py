"""Every claim about speed is a program here, run beside a native twin in the same run, as a ratio."""
