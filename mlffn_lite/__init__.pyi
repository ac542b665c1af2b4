from .config import Config as Config
from .datasets.folder import AnomalyFolder as AnomalyFolder
from .datasets.sources import open_source as open_source
from .detector import AnomalyDetector as AnomalyDetector
from .detector import Calibration as Calibration
from .detector import Prediction as Prediction
from .errors import MlffnError as MlffnError
from .network import MLFFN as MLFFN
from .network import MLFFNOutput as MLFFNOutput
from .pseudo import PseudoAnomalies as PseudoAnomalies

__version__: str
