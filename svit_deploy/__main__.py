"""`python -m svit_deploy`"""

import sys

from svit_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
