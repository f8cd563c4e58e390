"""The app as a Hugging Face Space: the bundled runs, for anyone, without uploads. See app/README.md."""

import os
import sys

from app.__main__ import main  # the folder `app` beside this file, which comes before the file

if __name__ == "__main__":
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    # `*`: a Space is reached by several names, and shows nothing that is not public
    sys.exit(main(["--host", "0.0.0.0", "--port", port, "--allow-host", "*", "--no-uploads", *sys.argv[1:]]))
