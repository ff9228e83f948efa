"""python -m data.prepare COMMAND"""
import sys

from data.prepare import main

try:
    main()
except KeyboardInterrupt:
    sys.exit("stopped: run the same command again to resume")
