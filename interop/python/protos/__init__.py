"""Messages of programs that know nothing of Eventkeel. After a change of a .proto file: scripts/protos"""
