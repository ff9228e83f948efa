"""Make or check a dataset folder: what python -m data.prepare COMMAND runs."""
from data.prepare import main

main()
