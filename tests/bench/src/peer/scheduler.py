"""The loops of `mobula-bench scheduler`, run by Ray: none, since its scheduler cannot be stepped alone."""

from harness import main

main()
