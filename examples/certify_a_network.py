"""The Lipschitz constant of a network, from above and from below: run `python examples/certify_a_network.py`."""

import numpy as np

from lipctrl.certify.bracket import certify
from lipctrl.certify.certificate import Box
from lipctrl.nn.plain import PlainNet

# A stranger's network: any weights will do. Here 4 inputs, two hidden layers of 32 tanh neurons, 2 outputs.
rng = np.random.default_rng(0)
shapes = ((32, 4), (32, 32), (2, 32))
net = PlainNet.mlp(
    [rng.normal(size=s) / np.sqrt(s[1]) for s in shapes], [rng.normal(size=s[0]) for s in shapes], "tanh"
)

everywhere = certify(net)
print(f"everywhere:     [{everywhere.lower.bound:.4f}, {everywhere.upper.bound:.4f}]  {everywhere.upper.method}")

region = Box((-0.3,) * 4, (0.3,) * 4)
local = certify(net, region=region)
print(f"on a small box: [{local.lower.bound:.4f}, {local.upper.bound:.4f}]  {local.upper.method}")
print(f"                plus at most {local.upper.execution_error:.1e} from floating point")

# The upper end is a proof about these weights, the lower end a concrete input: both are checked without any solver.
assert everywhere.upper.verify(net) and everywhere.lower.verify(net)
assert local.upper.verify(net) and local.upper.bound <= everywhere.upper.bound

# Change one weight by a millionth and the certificate is worthless: it belongs to other weights.
changed = {0: net.blocks[0][0] * (1 + 1e-6)}
assert not everywhere.upper.verify(PlainNet((changed, *net.blocks[1:]), net.biases, net.activations))
print("certificates verified, and refused for changed weights")
