"""Export a checkpoint to ONNX with optimum's own exporter, in an environment with optimum-onnx and without latentc.

python export_with_optimum.py CHECKPOINT FOLDER
"""

import sys

from optimum.exporters.onnx import main_export


def main(checkpoint, folder):
    main_export(checkpoint, output=folder, task="text-to-image", do_validation=False, local_files_only=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
