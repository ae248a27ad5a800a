"""SDE-Net for MNIST in PyTorch alone, images first by channels."""

import torch
from _sde_nets import IMAGE
from _sde_nets import LEARNING_RATES
from _sde_nets import MOMENTUM
from _sde_nets import NUM_STEPS
from _sde_nets import OOD_SCALE
from _sde_nets import SIGMA
from _sde_nets import WEIGHT_DECAY
from _training import CLASSES
from _training import wait_for_torch
from torch import nn
from torch.nn import functional


def norm(width):
    return nn.GroupNorm(min(32, width), width)


class TimedConv(nn.Module):
    """A convolution of the state and of the time, a channel in front."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width + 1, width, 3, padding=1)

    def forward(self, time, x):
        channel = torch.full_like(x[:, :1], time)
        return self.conv(torch.cat([channel, x], dim=1))


class TwoConvs(nn.Module):
    """Norm, ReLU and convolution, twice; and a norm."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.convs = nn.ModuleList(TimedConv(width) for _ in range(2))

    def forward(self, time, x):
        for norm_of, conv in zip(self.norms, self.convs):
            x = conv(time, functional.relu(norm_of(x)))
        return self.norms[2](x)


def pooled(width, units):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.ReLU(), pool, nn.Flatten(), nn.Linear(width, units))


class SDENetInTorch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3),
            *(norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1)),
            *(norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1)),
        )
        self.drift = TwoConvs(width)
        self.head = nn.Sequential(norm(width), pooled(width, CLASSES))
        self.diffusion = TwoConvs(width)
        self.last = pooled(width, 1)

    def noise(self, hidden):
        return torch.sigmoid(self.last(self.diffusion(0.0, hidden)))

    def forward(self, x):
        state = self.stem(x)
        scale = SIGMA * self.noise(state)[..., None, None]
        for step in range(NUM_STEPS):
            slope = self.drift(float(step), state)
            state = state + slope + scale * torch.randn_like(state)
        return self.head(state)

    def groups(self):
        first = nn.ModuleList([self.stem, self.drift, self.head])
        second = nn.ModuleList([self.diffusion, self.last])
        return first.parameters(), second.parameters()


def torch_steps(width, source):
    net = SDENetInTorch(width)
    first, second = (
        torch.optim.SGD(own, rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for own, rate in zip(net.groups(), LEARNING_RATES)
    )
    ones = None

    def one_step(x, y):
        nonlocal ones
        first.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        first.step()

        if ones is None:
            ones = torch.ones(len(x), 1)
        second.zero_grad()
        others = x + OOD_SCALE * torch.randn_like(x)
        for inputs, label in ((x, 0 * ones), (others, ones)):
            said = net.noise(net.stem(inputs).detach())
            functional.binary_cross_entropy(said, label).backward()
        second.step()

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            x, y = next(batches)
            one_step(x.reshape(len(x), 1, *IMAGE), y.long())
        wait_for_torch()

    return run
