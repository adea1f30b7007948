"""What operators may ask of a running system, and do to it. Every surface (command line, console) goes through here."""
