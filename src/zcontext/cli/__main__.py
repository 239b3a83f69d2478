"""`python -m zcontext.cli`: what `accelerate launch --module zcontext.cli` runs."""

from __future__ import annotations

from zcontext.cli import main

if __name__ == "__main__":
    main()
