"""Entry point of the command `flaxtl` and of `python -m flaxtl`."""

from flaxtl.cli.huge_pages import restart_with_huge_pages


def run() -> None:
    """Run the command of this process's command line and exit; see `flaxtl.cli.main.main`."""
    restart_with_huge_pages()
    from flaxtl.cli.main import main  # not before the restart, which would repeat it

    main()


if __name__ == "__main__":
    run()
