"""Say what a file of weights is: its format, its network, which of ours it fits, where it goes. Or convert it.

Run     python -m networks.pretrained FILE
        python -m networks.pretrained FILE --to OUT.safetensors     (or OUT.pth: plain names, float32, nothing beside)
        python -m networks.pretrained FILE --take teacher ...       (what lies there alone, of a file with several)
"""
import argparse


def parse(words=None):
    """Read the command's flags, by default this program's own; they are in a file that does without torch."""
    parser = argparse.ArgumentParser(prog="python -m networks.pretrained", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="of torch.save, of safetensors, or MXNet's .params")
    parser.add_argument("--to", metavar="OUT", default="", help="write its tensors to OUT.pth or OUT.safetensors")
    parser.add_argument("--take", metavar="NAME", default="", help="only what lies under this name in the file")
    return parser.parse_args(words)
