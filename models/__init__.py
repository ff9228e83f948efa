"""What train.py can train. A model is a file here, a file in methods/ with its objective, and a line in MODELS.

TITLE       what people call it
SUFFIX      of the folders in which infer.py writes its maps ("_mine": dict_mine, crf_mine); "" for one model alone
Settings    config.Train and the fields that only this model has; those of the models here are in config_models.py
RECIPES     {recipe: {field: (value, reason)}}: what a recipe changes for this model; voc's changes hold in all recipes
start(settings, experiment, layout)     its networks with their first weights -> the trained network, its objective,
            its description (networks.describe), digests of what it started from

And, where there is something to say:
ABOUT       what it does, for readers of no paper: a sentence that TITLE begins, for report.html
STARTS_FROM {flag: model}: models that are trained before it in the same experiment; the flag takes their weights
PUBLISHED   {"CAM", "CRF", "random walk" or "DeepLab": (mIoU on VOC 2012, where it is stated)}
CHAIN       {recipe: {"alphas", "low", "high", "init" of train_aff.py, flags of infer_aff.py: value}}: what follows its
            CAMs, where the model has values of its own
AUTHORS_FILE    how the authors' program names the weights after an epoch: ckpt/014net_er.pth for "net_er"
TITLE, SUFFIX and these are literals: tools/catalog.py reads them without importing the file.

What a model may have besides, where the general way does not suit it:
SAMPLE_TARGET                           label (C,), generator -> what is drawn for each sample: the batch's "target"
notes(settings, labels)                 sentences on what these labels (N, C) mean for this model
know_labels(objective, labels)          tells the objective what it has to know of all labels (N, C) of the list
plan(settings, images)                  data.loader.Plan, the batches
schedule_steps(settings, images)        steps over which the learning rate falls
figures(settings, experiment, objective, layout, step, batch)       called before each update
"""
from models import aeft_gpp, model_agnostic, model_cse, model_oc

MODELS = {"model_oc": model_oc, "model_cse": model_cse, "model_agnostic": model_agnostic, "aeft_gpp": aeft_gpp}
