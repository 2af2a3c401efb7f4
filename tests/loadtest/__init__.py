"""Tests of the load test: beside this file what needs no gevent, in `live/` Locust itself against real sockets."""
