"""Any vision method on any teacher that suits it, without data.

    accelerate launch recipes/vision_quantize.py
    accelerate launch recipes/vision_quantize.py --teacher digits-vit --method psaq --bits w8a8
    accelerate launch recipes/vision_quantize.py --teacher lite0 --weights model.safetensors --size 128 --bits w8a8
    accelerate launch recipes/vision_quantize.py --teacher DIR_OR_ID --method synq --data_dir DATA --steps 500

Without arguments it runs the embedded default, which downloads nothing: Genie at W2A4 on a small ResNet that this
machine trains once on scikit-learn's scans of handwritten digits. --data_dir serves the scores alone. Any option of the
method may be given (`zsaq methods NAME` lists them); --effort (default here: light) scales the rest. Ends with a table,
and a folder: the model and its image processor, results.json, pictures of the images that were made, the loss curves,
and a JSON line for every step.
"""

import zsaq
from zsaq import launch
from zsaq.beforehand import check_real
from zsaq.script import check_taken, given, positive, told

with told():
    from examples import imagenet, subjects

    from zsaq.eval.images import ImageSource
    from zsaq.eval.processing import DEVIATION, MEAN, check_sized, processor_of

DIGITS, OTHER = ("digits-resnet", "digits-vit"), "a folder or Hub id"
TAKEN = {
    **dict.fromkeys(DIGITS, ()),
    **dict.fromkeys(imagenet.NETS, ("weights", "data_dir", "real", "limit", "size", "mean", "std")),
    OTHER: ("data_dir", "split", "image_column", "label_column", "real", "size", "resize", "mean", "std"),
}


def main(argv: list[str] | None = None) -> None:
    parser = launch.parser(__doc__, "w2a4", "vision_quantize", method=None)
    named = ", ".join((*DIGITS, *imagenet.NETS))
    parser.add_argument("--teacher", default=DIGITS[0], help=f"{named}, or a classifier: folder or Hub id")
    parser.add_argument("--weights", help=f"{', '.join(imagenet.NETS)}: a state dict in safetensors, see examples/")
    parser.add_argument("--method", default="genie", choices=[*zsaq.methods()["vision"], "auto"], metavar="METHOD")
    parser.add_argument("--data_dir", help="labelled images for the scores: class folders, parquet, or Hub id")
    parser.add_argument("--split", help="folder or start of file names in --data_dir; on the Hub: validation if absent")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--real", help="training images for rows with real data, which are not zero-shot")
    parser.add_argument("--limit", type=positive, help="how many images of --data_dir, if not all; of named nets alone")
    parser.add_argument("--size", type=positive, help="side in pixels of what the teacher is shown")
    parser.add_argument("--resize", type=positive, help="shorter side before the middle is cut out; default: --size")
    parser.add_argument("--mean", type=float, nargs="+", help="with --size; default: ImageNet's, or the named net's")
    parser.add_argument("--std", type=float, nargs="+", help="with --size; default: ImageNet's, or the named net's")
    args = launch.parse(parser, argv)
    kind = args.teacher if args.teacher in TAKEN else OTHER
    check_taken(parser, argv, kind, TAKEN)
    if kind in imagenet.NETS and not args.weights:
        parser.error(f"{kind} needs --weights")
    if kind == OTHER:
        check_sized(parser, argv, args)
    for part in given(parser, argv, ("split", "limit")):
        if not args.data_dir:
            parser.error(f"{part} without --data_dir, which it is a part of: give both")
    if not (args.data_dir or args.real) and (columns := given(parser, argv, ("image_column", "label_column"))):
        parser.error(f"{', '.join(columns)} without --data_dir and --real, which have them: give one, or none")
    if TAKEN[kind]:
        check_real(parser, args, "real")
    with launch.session(args, args.teacher if kind == OTHER else None) as loop:
        if args.teacher in DIGITS:
            subject = subjects.scans(loop.accelerator, args.teacher.removeprefix("digits-"))
        elif args.teacher in imagenet.NETS:
            net = imagenet.NETS[args.teacher].with_(args.mean, args.std)
            test, size = [args.data_dir] if args.data_dir else [], args.size or 224
            subject = subjects.photos(net, args.weights, test, args.real, args.limit, size)
        else:
            mean, deviation = args.mean or MEAN, args.std or DEVIATION
            processor = processor_of([args.teacher], args.size, args.resize, mean, deviation)
            columns = args.image_column, args.label_column
            test = ImageSource(args.data_dir, args.split, columns) if args.data_dir else None
            real = ImageSource(args.real, None, columns) if args.real else None
            subject = subjects.pictures(loop.accelerator, args.teacher, processor, test, real)
        launch.main(args, loop, subject, baselines=("rtn-noise",), recipe=__file__)


if __name__ == "__main__":
    with told():
        main()
