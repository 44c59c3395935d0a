"""The families of process models as torch modules: from a scaled start state and inputs to scaled states.

Every cell maps p (batch, n) and u (batch, T, m) to the states after each of T steps (batch, T, n), with everything
scaled to [0, 1] by the training data. All but the LSTM unroll into a PlainNet, which is what is certified and exported.

iclrnn            ours: convex in (p, u_0..u_k) jointly for every step k. Free signs on what comes from p and u,
                  nonnegative weights between hidden units and to the outputs, convex nondecreasing activation, and an
                  affine map from p and u_0..u_k to every output. The horizon is unrolled from p; predicted states are
                  never fed back, which would destroy convexity.
iclrnn-published  Wang and Wu, "Input Convex Lipschitz RNN" (arXiv 2401.07494), as the authors' code has it: nonnegative
                  weights on [x; 1-x], each divided by its largest singular value after every step.
icrnn             Chen, Shi and Zhang, "Optimal Control Via Neural Networks" (arXiv 1805.11835).
lrnn              Erichson et al., "Lipschitz Recurrent Neural Networks" (arXiv 2006.12070), Euler-discretised.
rnn, lstm         two tanh layers, linear output.
gaussian          one step with its variance, as in model-based reinforcement learning; means are fed back.
"""

from typing import Literal

from lipctrl.models.cell import Cell
from lipctrl.models.gaussian import Gaussian
from lipctrl.models.iclrnn import Iclrnn
from lipctrl.models.published import Icrnn, Published
from lipctrl.models.recurrent import Lrnn, Lstm, Rnn

Family = Literal["iclrnn", "iclrnn-published", "icrnn", "lrnn", "rnn", "lstm", "gaussian"]
CELLS: dict[Family, type[Cell]] = {
    "iclrnn": Iclrnn,
    "iclrnn-published": Published,
    "icrnn": Icrnn,
    "lrnn": Lrnn,
    "rnn": Rnn,
    "lstm": Lstm,
    "gaussian": Gaussian,
}
