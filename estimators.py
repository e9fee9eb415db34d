"""scikit-learn's face of the project: any Keras model, and BERT, as estimators.

from estimators import BertClassifier, BertTransformer, KerasWrapperModel, KerasWrapperSequential
"""

from bert_classifier import BertClassifier
from features import BertTransformer
from keras_wrappers import KerasWrapperModel, KerasWrapperSequential

__all__ = ["BertClassifier", "BertTransformer", "KerasWrapperModel", "KerasWrapperSequential"]
