"""Names that ``import tood`` offers, for editors and type checkers: the package loads them when
they are first used.
"""

from tood import model_zoo as model_zoo
from tood.app.check import check as check
from tood.app.convert.command import convert as convert
from tood.app.demo import demo as demo
from tood.app.draw import draw as draw
from tood.app.evaluate import evaluate as evaluate
from tood.app.explain import explain as explain
from tood.app.export import export as export
from tood.app.guarantee.calibrate import calibrate as calibrate
from tood.app.guarantee.counts import count as count
from tood.app.guarantee.guarantee import guarantee as guarantee
from tood.app.predict import predict as predict
from tood.app.report.make import report as report
from tood.app.setup.command import setup as setup
from tood.app.train import train as train
from tood.app.trained import load as load
from tood.config.defaults import add_tood_config as add_tood_config
from tood.inference.predictor import Predictor as Predictor
from tood.model_zoo import get_model as get_model
from tood.modeling.backbone.fpn import (
    build_tood_resnet_fpn_backbone as build_tood_resnet_fpn_backbone,
)
from tood.modeling.detector import TOOD as TOOD
from tood.modeling.head import TOODHead as TOODHead
from tood.utils.errors import UserError as UserError

__version__: str
