from . import diagnostics as diagnostics
from .core.errors import BudgetError as BudgetError
from .core.errors import ConvergenceError as ConvergenceError
from .core.errors import NonFiniteError as NonFiniteError
from .core.errors import SBIPhysicsError as SBIPhysicsError
from .core.errors import ShapeError as ShapeError
from .core.errors import SimulationError as SimulationError
from .core.errors import StoreError as StoreError
from .core.errors import SupportError as SupportError
from .core.errors import TrainingError as TrainingError
from .core.errors import UsageError as UsageError
from .core.parameters import Parameter as Parameter
from .core.parameters import Parameters as Parameters
from .core.samples import Samples as Samples
from .posterior.files import load as load
from .posterior.files import save as save
from .posterior.nle import NLE as NLE
from .posterior.npe import NPE as NPE
from .posterior.nre import NRE as NRE
from .posterior.posterior import Posterior as Posterior
from .posterior.sequential import TSNPE as TSNPE
from .posterior.variational import VI as VI
from .report.figures import corner as corner
from .sampling.mcmc import mcmc as mcmc
from .simulation.run import simulate as simulate
from .store.simulations import Simulations as Simulations

__version__: str
