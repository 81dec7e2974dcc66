"""Mean squared and mean absolute error, computed by scikit-learn."""

import evaluate
from datasets import Value
from sklearn.metrics import mean_absolute_error, mean_squared_error

from sam_hf.metrics import metric_info


class Regression(evaluate.Metric):
    """`mse` and `mae` of predicted numbers."""

    def _info(self):
        return metric_info(__doc__, "numbers", Value("float32"))

    def _compute(self, predictions, references):
        return {
            "mse": float(mean_squared_error(references, predictions)),
            "mae": float(mean_absolute_error(references, predictions)),
        }
