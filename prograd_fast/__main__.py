"""`python -m prograd_fast` is the command `prograd-fast`."""

from prograd_fast.cli import main

if __name__ == "__main__":
    main()
