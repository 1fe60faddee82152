"""`python -m flaxtl`: the same door as the command `flaxtl`."""

from flaxtl.cli.main import main

if __name__ == "__main__":
    main()
