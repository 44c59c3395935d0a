"""Controllers with proved sensitivity: learn, certify, embed in MPC, attack, report.

Data flows one way: plant and demonstrations (`plant`, `envs`, `demos`) -> agents (`agents`) -> plain network
(`nn.plain`) -> certificate (`certify`), control loop (`mpc`) and attack (`attacks`) -> report (`evaluation`).
The command line is `lipctrl` (`cli`). Importing this package imports neither torch nor CasADi nor MuJoCo.
"""

__version__ = "0.1.0"
