"""python -m data.prepare COMMAND"""
from data.prepare import main

main()
