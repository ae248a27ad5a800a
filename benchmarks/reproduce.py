"""Runs what `docs/results.md` reports, and writes that page.

python benchmarks/reproduce.py                 # all: some hours on two cores
python benchmarks/reproduce.py --only lottery  # one section
python benchmarks/reproduce.py --write         # the page, from what there is

Every section is one script, whose command stands above its table. The scripts
keep what they finished, so a run that was stopped goes on where it was. What a
script printed when it came to its end goes to `measured/`, of which the page is
written at any time; a section that never came there says so.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
IMAGES = HERE.parent / "docs" / "images"
MEASURED = HERE / "measured"
INTRODUCTION = """\
# Results

What the papers claim, and what these parts gain and cost here: on small
networks and small sets of data, which run on two CPU cores in minutes. That
shows whether a part does what it is made for and what it costs, not what it
would gain on ImageNet. Gains and no gains stand alike. Settings are those of
the papers; nothing was tuned on a test set. `±` is the standard deviation over
the seeds.

`python benchmarks/reproduce.py` makes this page; the command of each section
makes its table. MNIST and Fashion-MNIST come from `keras.datasets`, which
downloads them once. Without a network, `KERAS_HOME` names a folder in which
`datasets/fashion-mnist` holds the gzipped IDX files, and `--data FOLDER` (of
`reproduce.py`, and of the commands that read MNIST) one of those of MNIST. The
costs of a step, in ratios to a plain one, are in `benchmarks/README.md`, beside
these scripts.
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A claim, the strongest peer, and the script that measures it."""

    name: str
    title: str
    claim: str
    peer: str
    script: str
    # Beside `--out`.
    arguments: str = ""
    backend: str = "jax"
    # Reads MNIST, which `--data` may name a folder of.
    mnist: bool = False
    # What the measurement says, in words: written after looking at it.
    finding: str = ""

    @property
    def command(self):
        parts = ["python", f"benchmarks/{self.script}", self.arguments]
        return f"KERAS_BACKEND={self.backend} " + " ".join(filter(None, parts))


SECTIONS = [
    Section(
        "composed",
        "Parts alone and together",
        "SAM makes training robust to wrong labels: on CIFAR-10 with 40% of "
        "them wrong, ResNet-32 reaches 93.4% with SAM, 90.0% with MixUp and "
        "68.8% without ([Foret et al., 2021](https://arxiv.org/abs/2010.01412)"
        ", table 4). Of all parts in one `fit` no paper speaks.",
        "Loops written by hand, a part each; no package has all of these.",
        "composed.py",
        finding="With right labels nothing gains more than half a point. With "
        "40% of them wrong SAM gains 8.6 points, MixUp 7.4 and CutMix 10.5; "
        "SAM and MixUp together gain 10.1, more than each alone, but SAM takes "
        "something away from CutMix. Learned task weights take the error of "
        "the second task from 0.108 to 0.063, and with SAM and MixUp to 0.046. "
        "The energy changes nothing here, and tickets alone are worse with "
        "wrong labels, which they have three rounds to learn by heart. All "
        "parts act in one `fit`. The seconds are those of a core that other "
        "work was given too: good to a factor of two.",
    ),
    Section(
        "sam_accuracy",
        "SAM and its variants at equal cost",
        "WRN-16-4 on CIFAR-100, the same number of epochs: SGD 76.9%, SAM "
        "79.3% for twice the gradients, LookSAM 79.0% for 1.2 times and "
        "MomentumSAM 79.1% for no more than SGD takes ([Becker et al., 2024]"
        "(https://arxiv.org/abs/2401.12033), table 1).",
        "`pytorch_optimizer`'s SAM, whose step is timed beside this one in "
        "`sam_step.py`; the rule is the same.",
        "sam_accuracy.py",
        finding="All with two gradients gain a quarter to three quarters of a "
        "point beside a plain optimizer that takes as many, and gains nothing "
        "by training on; LookSAM gains half a point for 1.2 gradients a step. "
        "With an alpha of 0.7 it loses around SGD, and around AdamW in as many "
        "epochs. MomentumSAM gains nothing for as many gradients, and around "
        "AdamW, with a rho of 1, it is slower to learn. What a step takes is "
        "in `sam_step.py`.",
    ),
    Section(
        "lottery_ticket",
        "Winning tickets",
        "LeNet-300-100 on MNIST: a winning ticket of 21.1% of the weights "
        "learns 38% sooner than the whole net, one of 13.5% is over 0.3 points "
        "more accurate, and one of 3.6% is as good; drawn anew, they learn "
        "later and worse ([Frankle and Carbin, 2019]"
        "(https://arxiv.org/abs/1803.03635)). A net of which only a mask is "
        "learned reaches about 95% ([Zhou et al., 2019]"
        "(https://arxiv.org/abs/1905.01067)).",
        "tensorflow-model-optimization prunes, but has no rounds, and refuses "
        "models of Keras 3.",
        "lottery_ticket.py",
        mnist=True,
        finding="As the paper has it: tickets of 21% to 7% of the weights are "
        "0.4 points more accurate than the whole net and learn up to 30% "
        "sooner, one of 3.6% is still as good, and the same masks with weights "
        "drawn anew, or random masks, are later and worse at every size. A "
        "supermask alone, no weight trained, reaches 97.4%.",
    ),
    Section(
        "pruning_accuracy",
        "Pruning before, during and after training",
        "Gradual pruning of a trained network keeps its accuracy at 90% zeros "
        "and better ([Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878));"
        " SNIP takes 98% of LeNet-300-100 before training, with little loss "
        "([Lee et al., 2019](https://arxiv.org/abs/1810.02340)).",
        "tensorflow-model-optimization, in the last row; it has gradual "
        "pruning alone.",
        "pruning_accuracy.py",
        "--epochs 10",
        mnist=True,
        finding="As the papers have it: gradual pruning loses nothing at 90% "
        "and 95% zeros and 0.3 points at 98%, a point above that of "
        "tensorflow-model-optimization, where all layers have the same share. "
        "Weights taken from the trained network at once ruin it. Before "
        "training SNIP does best: 0.4, 1.2 and 3.3 points; random masks fall "
        "apart at 98%. The seconds are those of a core that other work was "
        "given too.",
    ),
    Section(
        "multi_task_accuracy",
        "Task weights, learned and fixed",
        "On NYUv2, over single tasks: equal weights +3.6%, DWA +4.6%, PCGrad "
        "+5.1%, learned uncertainties +6.5% ([auto-lambda]"
        "(https://github.com/lorenmt/auto-lambda), three seeds, give or take "
        "one); fixed weights are as good once they are tuned ([Kurin et al., "
        "2022](https://arxiv.org/abs/2201.04122)).",
        "LibMTL and TorchJD, for PyTorch alone, with loops of their own.",
        "multi_task_accuracy.py",
        "--seeds 5",
        finding="Three tasks whose losses differ by orders of magnitude. "
        "Learned uncertainties, the geometric mean and FAMO take a quarter off "
        "the errors of equal weights, as much as the weights found in a search "
        "of 25 fits, without it; as in the paper, tuned weights are no worse. "
        "PCGrad, DWA and random weights keep the scales of the losses, and so "
        "gain nothing; the inverse losses of UW-SO, at the temperature of 1, "
        "give all weight to the smallest loss.",
    ),
    Section(
        "mhe_accuracy",
        "Minimum hyperspherical energy",
        "CIFAR-100, a VGG-9, one run each, from the authors' logs: 69.7% "
        "without, 74.0% with the half-space energy of power 2 ([Liu et al., "
        "2018](https://arxiv.org/abs/1805.09298)).",
        "The authors' code for TensorFlow 1; Keras has `OrthogonalRegularizer`,"
        " for matrices alone.",
        "mhe_accuracy.py",
        finding="No gain, and no loss: all are within a fifth of a point of "
        "the plain network, which is less than the seeds differ by. A network "
        "of three narrow layers has few neurons to spread. The times are those "
        "of a core that other work was given too, the last row more than the "
        "others.",
    ),
    Section(
        "uncertainty",
        "SDE-Net and BatchEnsemble: to know what is not known",
        "MNIST, with SVHN as the unknown: AUROC 99.8 of SDE-Net, 95.9 of a "
        "ResNet; SVHN with CIFAR-10: 94.3 and 94.4, no gain (the code of [Kong "
        "et al., 2020](https://arxiv.org/abs/2008.10546), as run for [keras-"
        "sde-net](https://github.com/philipperemy/keras-sde-net)). CIFAR-10, "
        "WRN-28-10: 96.0% alone, 96.3% as a BatchEnsemble of 4, 96.6% as four "
        "networks, negative log-likelihoods 0.159, 0.136 and 0.114 "
        "([uncertainty-baselines](https://github.com/google/"
        "uncertainty-baselines), after [Wen et al., 2020]"
        "(https://arxiv.org/abs/2002.06715)).",
        "`torch-uncertainty`, which has BatchEnsemble; edward2, for Keras 2; "
        "SDE-Net as its authors left it.",
        "uncertainty.py",
        "--seeds 2",
        mnist=True,
        finding="BatchEnsemble is the best of all here: more accurate than one "
        "network, by 1 and 3 points, with a better likelihood, and it tells "
        "unknown images far better (AUROC 95 for 81, and 89 for 68), with 13% "
        "more weights and eight times the time on one core; four networks, of "
        "as few steps each, are behind it. The diffusion of SDE-Net tells "
        "unknown images well (89 and 93), best of all with Fashion-MNIST as the"
        " known, but after so few steps its network is 8 points less accurate, "
        "and on the small regression it is third by likelihood, close to "
        "BatchEnsemble and before four networks: there MC dropout is best in "
        "all. One network that is sure of what it does not know "
        "is no strong rival: 5,000 images and 8 epochs are little. Two seeds.",
    ),
]


def run(section, folder, data):
    """Runs a script; keeps what it printed, if it came to its end."""
    out = folder / section.name
    out.mkdir(parents=True, exist_ok=True)
    command = section.command.split()[1:]
    command[0] = sys.executable
    if section.mnist and data:
        command += ["--data", data]
    print(f"{section.name}: {section.command}", flush=True)
    start = time.perf_counter()
    process = subprocess.run(
        [*command, "--out", str(out)],
        cwd=HERE.parent,
        env={**os.environ, "KERAS_BACKEND": section.backend},
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode == 0:
        keep(section, process.stdout, out)
    minutes = (time.perf_counter() - start) / 60
    print(f"{section.name}: rc {process.returncode}, {minutes:.1f} min")
    return process.returncode == 0


def keep(section, printed, out):
    """Keeps what a script printed, from the line of the machine, and plots."""
    lines = printed.splitlines()
    first = next(i for i, t in enumerate(lines) if re.match(r"Keras \d", t))
    blocks = ["\n".join(lines[first:]).strip()]
    for path in sorted(out.glob("*.png")):
        IMAGES.mkdir(exist_ok=True)
        shutil.copy(path, IMAGES / path.name)
        blocks.append(f"![{section.title}](images/{path.name})")
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{section.name}.md").write_text("\n\n".join(blocks) + "\n")


def measured(section):
    path = MEASURED / f"{section.name}.md"
    if not path.exists():
        return "Not run to its end yet."
    return path.read_text().strip()


def written(section):
    blocks = [
        f"## {section.title}",
        f"**Claim.** {section.claim}",
        f"**Strongest peer.** {section.peer}",
        f"```bash\n{section.command}\n```",
        measured(section),
        section.finding and f"**Found.** {section.finding}",
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def page():
    return "\n".join([INTRODUCTION, *map(written, SECTIONS)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression")
    parser.add_argument("--write", action="store_true", help="run nothing")
    parser.add_argument("--data", help="folder of MNIST as gzipped IDX files")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/reproduce")
    )
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    chosen = [s for s in SECTIONS if re.search(arguments.only, s.name)]
    failed = []
    if not arguments.write:
        failed = [
            section.name
            for section in chosen
            if not run(section, folder, arguments.data)
        ]
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(HERE.parent)}")
    if failed:
        sys.exit(f"not run to their end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
