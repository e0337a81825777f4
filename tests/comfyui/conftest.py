"""The suites under host/ run under ComfyUI's own python, from test_host.py; this python cannot import
them."""

collect_ignore = ["host"]
