"""Entry point of `python -m flaxtl`, the same as the command `flaxtl`."""

from flaxtl.cli.main import main

if __name__ == "__main__":
    main()
