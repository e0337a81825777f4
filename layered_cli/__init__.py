"""The ``layered`` command: pictures and layered files without ComfyUI, with a file for each sub-command.

>>> from layered_cli.command import main
>>> main(["generate", "a red ball by the sea", "-o", "ball.png", "--steps", "10"])
wrote ball.png
0
"""
