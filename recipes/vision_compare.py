"""The tables of vision: several methods, one teacher, several bits and seeds; last iterate, mean and spread.

    python recipes/vision_compare.py digits-resnet --methods rtn-noise zeroq --bits w4a4 --output_dir outputs/digits
    python recipes/vision_compare.py lite0 --weights model.safetensors --test pictures.parquet --size 128 --bits w8a8 \\
        --methods rtn-noise zeroq --output_dir outputs/lite0
    python recipes/vision_compare.py cifar --weights resnet20.safetensors --test test.parquet --real train.parquet \\
        --preset uniform --bits w4a4 w3a3 --methods zeroq gdfq synq synq-real --seeds 0 1 2 --output_dir outputs/cifar

Every finished run is a line of `runs.jsonl`, and a run that stands there is not repeated. Any option of the methods may
be given, such as --images 64 (`zsaq methods NAME` lists them); --effort (default here: light) scales the rest.
"""

from zsaq import launch
from zsaq.beforehand import check_real
from zsaq.script import check_taken, told

with told():
    from examples import imagenet, subjects

IMAGES = ("weights", "test", "real")
TAKEN = {
    "digits-resnet": (),
    "digits-vit": (),
    "cifar": IMAGES,
    **dict.fromkeys(imagenet.NETS, (*IMAGES, "limit", "size", "mean", "std")),
}


def main() -> None:
    parser = launch.table_parser(__doc__, "w4a4", "vision")
    parser.add_argument("job", choices=TAKEN)
    parser.add_argument("--weights", help="all but digits: a state dict in safetensors, see examples/")
    parser.add_argument("--test", nargs="+", default=[], help="all but digits: parquet files with test images")
    parser.add_argument("--real", help="all but digits: a parquet file for the rows with real data")
    imagenet.add_flags(parser)
    args = launch.parse(parser)
    check_taken(parser, None, args.job, TAKEN)
    if TAKEN[args.job] and not (args.weights and args.test):
        parser.error(f"{args.job} needs --weights and --test")
    if TAKEN[args.job]:
        check_real(parser, args, "real")
    with launch.session(args) as loop:
        if args.job == "cifar":
            subject = subjects.cifar10(args.weights, args.test, args.real)
        elif args.job in imagenet.NETS:
            net = imagenet.NETS[args.job].with_(args.mean, args.std)
            subject = subjects.photos(net, args.weights, args.test, args.real, args.limit, args.size)
        else:
            subject = subjects.scans(loop.accelerator, args.job.removeprefix("digits-"))
        launch.table(args, loop, subject)


if __name__ == "__main__":
    with told():
        main()
