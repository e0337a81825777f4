"""The page of ``layered app``: what it works on (``editor``, ``history``, ``turn``), what it shows (``view``), and
the page itself (``blocks``), which alone knows Gradio."""
