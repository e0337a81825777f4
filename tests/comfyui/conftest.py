"""Leave out the suites under host/: test_host.py runs them under ComfyUI's own python, and this python cannot
import them."""

collect_ignore = ["host"]
