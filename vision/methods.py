"""The table of vision methods: where images come from x how the student is fitted x the paper's defaults.

Settings are CIFAR-10's for images up to 64 pixels wide and ImageNet's beyond (`published`).
"""

from functools import partial

from zsaq.method import Method
from zsaq.vision.budgets import (
    BLOCKS,
    GENERATOR,
    GENIE,
    IMAGES,
    KL_STEPS,
    MORE,
    NOISE,
    OF_PSAQ,
    ONEPASS,
    PSAQ,
    PYRAMID,
    SHARPER,
    STEPS_OF_BLOCKS,
    TUNED,
    ZEROQ,
    only_images,
    only_steps,
    steps,
)
from zsaq.vision.early import (
    convolved,
    doubled,
    falling,
    in_float32,
    in_pairs,
    learnable,
    mapped,
    of_two,
    passable,
    textured,
    within_margins,
)
from zsaq.vision.extras import by_psaq, deep, host, mean_and_deviation, zeroq_ranges
from zsaq.vision.fine_tuning import on_batches
from zsaq.vision.onepass import mixing, onepass, onepass_blocks, onepass_blocks_kl, onepass_kl
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import adasg
from zsaq.vision.papers.ait import ait, divergence_alone
from zsaq.vision.papers.arc import arc
from zsaq.vision.papers.gdfq import gdfq
from zsaq.vision.papers.genie import genie
from zsaq.vision.papers.hast import hast
from zsaq.vision.papers.intraq import intraq
from zsaq.vision.papers.plf import plf
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.qimera import qimera
from zsaq.vision.papers.sadag import sadag
from zsaq.vision.papers.synq import genie_synq, synq
from zsaq.vision.papers.texq import texq
from zsaq.vision.rows import ANY, ATTENTION, ATTENTION_HEADED, HEADED, NORMS, fitted, rounded

generated = partial(
    fitted, images="", budgets=GENERATOR | steps(70_000), needs=NORMS, preset="uniform",
    cost="a generator's warm-up, then two models a step", checks=(doubled(2),),
)  # fmt: skip
inundated = partial(generated, paper="ait")
contended = partial(generated, checks=(doubled(2), within_margins))
direct = partial(
    fitted, budgets=IMAGES | steps(29_400), needs=NORMS, preset="uniform", cost="images, then steps of SGD",
    extra=zeroq_ranges,
)  # fmt: skip
with_synq = partial(
    fitted, method=synq, budgets=IMAGES | steps(19_400), needs=NORMS, preset="uniform",
    cost="images, then steps of SGD and activation maps", paper="synq", checks=(mapped,),
)  # fmt: skip
blockwise = partial(
    fitted, method=genie, budgets=GENIE | BLOCKS, needs=NORMS, preset="brecq", paper="genie", cost=STEPS_OF_BLOCKS,
    checks=(learnable, in_float32),
)  # fmt: skip
passed = partial(
    fitted, method=onepass, budgets=ONEPASS, needs=NORMS, preset="brecq", cost="one forward pass, beside the images",
    checks=(passable,),
)  # fmt: skip
then_kl = partial(
    fitted, method=onepass_kl, budgets=ONEPASS | KL_STEPS, preset="brecq", cost="images, then steps of SGD",
    checks=(of_two, in_pairs, passable),
)  # fmt: skip
then_blocks = partial(passed, method=onepass_blocks, cost=STEPS_OF_BLOCKS, checks=(of_two, mixing, passable, learnable))
then_both = partial(
    then_blocks, method=onepass_blocks_kl, cost=f"{STEPS_OF_BLOCKS}, then of SGD",
    checks=(of_two, in_pairs, mixing, passable, learnable),
)  # fmt: skip
learned = partial(
    blockwise, method=psaq_learned, budgets=PSAQ | OF_PSAQ, needs=ATTENTION, preset="psaq", paper="psaq",
    extra=mean_and_deviation,
)  # fmt: skip
sharpened = partial(
    blockwise, method=sadag, images="sources", budgets=GENIE | SHARPER | BLOCKS, needs=HEADED, paper="sadag",
    cost="Genie's twice, and second derivatives between",
)  # fmt: skip

ROWS = (
    rounded("rtn-noise", "noise", "ranges of noise; nothing is learned", budgets=NOISE, needs=ANY),
    rounded("rtn-real", "real", "ranges of real images; nothing is learned", budgets=NOISE, needs=ANY, zero_shot=False),
    rounded(
        "zeroq", "zeroq", "images that match the BatchNorm statistics set the ranges", budgets=ZEROQ, needs=NORMS,
        paper="zeroq",
    ),
    rounded(
        "dsg", "dsg", "ZeroQ with slack, and a layer of its own for every image", budgets=ZEROQ, needs=NORMS,
        paper="dsg",
    ),
    rounded(
        "psaq", "psaq", "images whose patches differ as those of real ones do set the ranges", budgets=PSAQ,
        needs=ATTENTION, preset="psaq", paper="psaq",
    ),
    passed(
        "onepass", images="pyramid",
        idea="images of many resolutions and mixtures of them; rounding compensated in one pass",
    ),
    passed("onepass-noise", images="noise", idea="the same pass on noise", needs=ANY, budgets=only_images(ONEPASS)),
    passed(
        "onepass-pink", images="pink", idea="the same pass on noise with spectrum and colours as photographs have",
        needs=ANY, budgets=only_images(ONEPASS),
    ),
    passed("onepass-zeroq", images="zeroq", idea="the same pass on ZeroQ's images", budgets=ZEROQ, paper="zeroq"),
    passed("onepass-genie", images="genie", idea="the same pass on Genie's images", budgets=ONEPASS, paper="genie"),
    passed(
        "onepass-psaq", images="psaq", idea="the same pass on PSAQ-ViT's images", needs=ATTENTION, budgets=PSAQ,
        paper="psaq",
    ),
    passed(
        "onepass-real", images="real", idea="the same pass on real images", needs=ANY, zero_shot=False,
        budgets=only_images(ONEPASS),
    ),
    then_blocks(
        "onepass-blocks", images="pyramid", idea="one pass, then rounding learned block by block", budgets=MORE
    ),
    then_blocks(
        "onepass-blocks-real", images="real", idea="the same on real images", needs=ANY, zero_shot=False,
        budgets=only_steps(MORE),
    ),
    then_both(
        "onepass-blocks-kl", images="pyramid", idea="one pass, rounding learned block by block, then steps of KL",
        budgets=MORE | TUNED,
    ),
    then_both(
        "onepass-blocks-kl-real", images="real", idea="the same on real images", needs=ANY, zero_shot=False,
        budgets=only_steps(MORE | TUNED),
    ),
    then_kl("onepass-kl", images="pyramid", idea="one pass, then steps of KL on mixtures of its images", needs=NORMS),
    then_kl(
        "onepass-kl-real", images="real", idea="the same on real images", needs=ANY, zero_shot=False,
        budgets=only_images(ONEPASS) | KL_STEPS,
    ),
    generated("gdfq", gdfq, idea="a generator learns beside the student", paper="gdfq"),
    generated("qimera", qimera, idea="GDFQ with superposed classes", needs=HEADED, paper="qimera"),
    generated("arc", arc, idea="GDFQ with a generator that was found by search", paper="arc", checks=(doubled(3),)),
    inundated("gdfq-ait", ait, idea="GDFQ, KL alone, gradients inundated"),
    inundated("qimera-ait", ait, idea="Qimera, KL alone, gradients inundated", needs=HEADED, extra=host("qimera")),
    inundated("arc-ait", ait, idea="ARC, KL alone, gradients inundated", extra=host("arc"), checks=(doubled(3),)),
    inundated("gdfq-kl", divergence_alone, idea="AIT's control: GDFQ, KL alone, plain steps"),
    contended("adasg", adasg, idea="the generator keeps the disagreement within margins", paper="adasg"),
    contended("adadfq", adadfq, idea="AdaSG with margins that adapt to bits", paper="adadfq"),
    generated(
        "texq", texq, idea="texture centres guide the generator; experimental, our reading of the abstract",
        budgets=GENERATOR | steps(70_000) | {"centre_steps": (200, 1500, 1500)}, paper="texq",
        checks=(doubled(2), textured),
    ),
    direct("intraq", intraq, "intraq", "images of a class differ", needs=HEADED, paper="intraq"),
    direct(
        "plf", plf, "plf", "the teacher's labels count where it is sure", budgets=IMAGES | steps(20_000), paper="plf",
        checks=(falling,),
    ),
    direct("hast", hast, "hast", "hard images, and the worst point near each", paper="hast"),
    with_synq("synq", images="hast", idea="HAST's images, filtered; maps aligned; easy labels alone"),
    with_synq("synq-zeroq-ranges", images="hast", idea="SynQ with the ranges of ZeroQ's images", extra=zeroq_ranges),
    with_synq(
        "synq-no-filter", images="hast", idea="SynQ without its filter, ranges of ZeroQ's images", extra=zeroq_ranges,
        cutoff=None,
    ),
    with_synq("synq-no-maps", images="hast", idea="SynQ without activation maps", maps=0.0),
    with_synq("synq-all-labels", images="hast", idea="SynQ with the labels of all images", difficulty=None),
    with_synq("synq-own", images="synq", idea="SynQ on the images of its appendix, drawn towards centres"),
    with_synq(
        "synq-psaq", images="psaq", idea="SynQ on PSAQ-ViT's images", budgets=PSAQ | steps(19_400), needs=ATTENTION,
        preset="psaq", difficulty=0.5,
    ),
    with_synq(
        "synq-noise", images="noise", idea="SynQ on noise", budgets=only_images(IMAGES) | steps(19_400), needs=ANY
    ),
    with_synq(
        "synq-real", images="real", idea="SynQ's steps on real images", budgets=only_images(IMAGES) | steps(19_400),
        needs=ANY, zero_shot=False, cutoff=None,
    ),
    blockwise("genie", images="genie", idea="images of learned latents; rounding learned block by block"),
    blockwise(
        "genie-pyramid", images="pyramid", idea="Genie's rounding learned on pyramid images", budgets=PYRAMID | BLOCKS
    ),
    blockwise("genie-filter", images="genie", idea="Genie behind SynQ's filter", clear=0.25),
    blockwise(
        "genie-synq", method=genie_synq, images="genie", idea="Genie behind SynQ's filter, then SynQ",
        budgets=GENIE | BLOCKS | {"tuning_steps": (200, 2000, 19_400), "tuning_batch_size": (64, 64, 16)}, paper="synq",
        cost="Genie's, then steps of SGD", checks=(learnable, in_float32, mapped),
    ),
    blockwise(
        "genie-noise", images="noise", idea="Genie's rounding learned on noise", budgets=only_images(GENIE) | BLOCKS,
        needs=ANY,
    ),
    blockwise(
        "genie-real", images="real", idea="Genie's rounding learned on real images",
        budgets=only_images(GENIE) | BLOCKS, needs=ANY, zero_shot=False,
    ),
    learned("psaq-learned", images="psaq", idea="PSAQ-ViT's images; rounding learned block by block"),
    learned(
        "psaq-noise", images="noise", idea="the same rounding learned on noise", budgets=only_images(PSAQ) | OF_PSAQ
    ),
    learned(
        "psaq-real", images="real", idea="the same rounding learned on real images",
        budgets=only_images(PSAQ) | OF_PSAQ, zero_shot=False,
    ),
    sharpened("sadag", idea="Genie's images, sharpened so that gradients agree around each"),
    sharpened("sadag-released", idea="SADAG in the released direction", released=True),
    sharpened(
        "sadag-deep", idea="SADAG with gradients of the last convolution", extra=deep, needs=NORMS,
        checks=(learnable, in_float32, convolved),
    ),
    sharpened(
        "psaq-sadag", images="psaq", idea="SADAG on PSAQ-ViT's images, in their pixels", extra=by_psaq,
        budgets=PSAQ | SHARPER | OF_PSAQ, needs=ATTENTION_HEADED, preset="psaq",
    ),
    fitted(
        "distill", on_batches, "given", "one's own images, matched by KL", needs=ANY, preset="uniform",
        budgets=steps(20_000) | {"calibration": (10, 100, 100)}, cost="steps of SGD", zero_shot=False,
    ),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in ROWS}
