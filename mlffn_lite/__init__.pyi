from .config import Config as Config
from .datasets.folder import AnomalyFolder as AnomalyFolder
from .detector import AnomalyDetector as AnomalyDetector
from .detector import Prediction as Prediction
from .errors import MlffnError as MlffnError
from .network import MLFFN as MLFFN
from .network import MLFFNOutput as MLFFNOutput
from .pseudo import PseudoAnomalies as PseudoAnomalies

__version__: str
