"""Messages as other programs declare them. After a change of a .proto file: scripts/protos"""
