"""The shop's page: the first thing that a visitor sees. It looks at the services from outside, by plain SQL and their
HTTP APIs, and can hurt them. An ordinary ASGI application and static files, without any build step."""
