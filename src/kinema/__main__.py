"""`python -m kinema` is the command `kinema`."""

from .cli import main

if __name__ == "__main__":
    main()
