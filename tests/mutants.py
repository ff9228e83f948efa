"""Would the tests see a wrong number? Each mutant is a line of the product, broken as a slip would break it.

Prints  for each mutant whether the tests that must fail did, the first of them, the seconds; at the end how many did
Run     python -m tests.mutants                 all of them, in minutes; exit code 1 if one was not caught
        python -m tests.mutants --only resume   those with that word in their names
        python -m tests.mutants --list          runs none
The files that git knows are copied to a temporary folder and broken there, one change at a time; the working tree stays
as it is. First the same tests have to pass on the unbroken copy.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# No bytecode: within a second, Python would take that of a file before a change that keeps its length.
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}


class Mutant(NamedTuple):
    name: str
    file: str
    old: str            # occurs once in the file
    new: str
    tests: str          # in tests/: a file, or file::test; several with spaces between


MUTANTS = [
    # ---- methods/ ----
    Mutant("CSE: batch and image change places in the mask's norm", "methods/cse.py",
           'mask.max() if mask_norm == "batch"', 'mask.max() if mask_norm == "image"',
           "test_cse.py::test_batch_masks_depend_on_the_batch_and_image_masks_do_not"),
    Mutant("CSE: the first class is never erased", "methods/cse.py",
           "torch.where((target >= 0)[:, None", "torch.where((target > 0)[:, None",
           "test_cse.py::test_masks_lie_between_0_and_1"),
    Mutant("CSE: the erased image's label keeps the target", "methods/cse.py",
           "return label * (1 - row), has_target", "return label, has_target",
           "test_cse.py::test_the_remaining_labels_lack_the_target_alone"),
    Mutant("CSE: lambda does not grow with the epoch", "methods/cse.py",
           "lam = self.cc_init + self.cc_slope * epoch", "lam = self.cc_init + self.cc_slope",
           "test_cse.py::test_lambda_is_the_authors"),
    Mutant("CSE: the mask is detached", "methods/cse.py",
           "return image * (1 - mask), mask", "return image * (1 - mask.detach()), mask",
           "test_cse.py::test_the_erased_picture_is_not_detached"),
    Mutant("CSE: dropout in the frozen classifier", "methods/cse.py",
           "        self.oc.eval()\n        return self", "        return self",
           "test_cse.py::test_the_oc_stays_in_eval_mode"),
    Mutant("present classes: the maps of others are taken", "methods/classification.py",
           "label.topk(most)", "label.topk(most, largest=False)",
           "test_aeft.py::test_maps_of_absent_classes_are_not_enlarged"),
    Mutant("class-agnostic: the erasing loss is subtracted", "methods/agnostic.py",
           '"loss": loss_cls + loss_cse', '"loss": loss_cls - loss_cse',
           "test_cse.py::test_class_agnostic_losses_are_what_the_paper_says"),
    Mutant("targets: a class that is absent is drawn", "methods/targets.py",
           "score.masked_fill(label <= 0, -1)", "score.masked_fill(label < 0, -1)",
           "test_cse.py::test_targets_are_drawn_uniformly_from_the_classes_present"),
    Mutant("targets: in turn, yet the same in every epoch", "methods/targets.py",
           'batch["index"].to(label.device) + epoch', 'batch["index"].to(label.device)',
           "test_cse.py::test_each_epoch_the_next_class_or_the_largest"),
    Mutant("targets: the largest counts negative activation", "methods/targets.py",
           "cam.detach().float().relu().sum((2, 3))", "cam.detach().float().abs().sum((2, 3))",
           "test_cse.py::test_each_epoch_the_next_class_or_the_largest"),
    Mutant("GPP: the negative gate is added", "networks/gpp.py",
           "- self._part(self.att_n", "+ self._part(self.att_n",
           "test_aeft.py::test_gates_and_pooling_are_the_authors"),
    Mutant("triplet: the negative shares a class", "methods/aeft.py",
           "(label @ label.T == 0)", "(label @ label.T <= 1)", "test_aeft.py::test_a_negative_shares_no_class"),
    Mutant("triplet: the first image is nobody's negative", "methods/aeft.py", "there = negative >= 0",
           "there = negative > 0", "test_aeft.py::test_images_without_a_negative_take_no_part"),
    Mutant("triplet: five near images do not count", "methods/aeft.py", "torch.where(count > 4",
           "torch.where(count > 5", "test_aeft.py::test_images_without_a_negative_take_no_part"),
    Mutant("triplet: four near images count", "methods/aeft.py",
           "torch.where(count > 4,", "torch.where(count >= 4,",
           "test_aeft.py::test_images_without_a_negative_take_no_part"),
    Mutant("triplet: the whole large batch is classified", "models/aeft_gpp.py",
           "settings.T, settings.batch_size //", "settings.T, settings.batch_size_triplet //",
           "test_other_models.py::test_the_objective_gets_its_flags"),
    Mutant("random walk: beta is left out", "methods/random_walk.py",
           "weight = (affinity**beta).reshape(shape)", "weight = affinity.reshape(shape)",
           "test_random_walk.py::test_equals_the_dense_matrix"),
    Mutant("random walk: a step back lands on the wrong side", "methods/random_walk.py",
           "(margin + x, margin - x, y, margin - y)", "(margin - x, margin + x, y, margin - y)",
           "test_random_walk.py::test_equals_the_dense_matrix"),
    Mutant("affinity: the radius of a small map is one too large", "methods/affinity.py",
           "(min(h, w) - 1) // 2", "min(h, w) // 2", "test_affinity.py::test_the_radius_of_small_maps"),
    Mutant("affinity: the alphas of background and object change places", "methods/affinity.py",
           "low, high = F.avg_pool2d(low, stride), F.avg_pool2d(high, stride)",
           "high, low = F.avg_pool2d(low, stride), F.avg_pool2d(high, stride)",
           "test_affinity.py::test_what_is_confident"),
    Mutant("affinity: a pair with an unknown cell counts as different", "methods/affinity.py",
           "(known & ~equal).float()", "(~equal).float()", "test_affinity.py::test_pairs_equal_a_loop_over_cells"),
    Mutant("CAM: the mirror image's map is not turned back", "methods/cam.py",
           "total += cam[0] + cam[1].flip(-1)", "total += cam[0] + cam[1]",
           "test_cam.py::test_a_mirrored_picture_has_mirrored_cams"),
    Mutant("erase and infer: the region is not mirrored with its view", "methods/erase_rounds.py",
           "torch.cat([kept, kept.flip(-1)])", "torch.cat([kept, kept])",
           "test_erase_rounds.py::test_a_region_is_erased_in_every_view_and_mirrored"),
    Mutant("erase and infer: what an earlier round has erased comes back", "methods/erase_rounds.py",
           "erased = erased | (maps[-1] > threshold)", "erased = maps[-1] > threshold",
           "test_erase_rounds.py::test_by_hand"),
    Mutant("DeepLab: the mirror image's scores are not turned back", "methods/segmentation.py",
           "scores[0] + scores[1].flip(-1)", "scores[0] + scores[1]",
           "test_segmentation.py::test_the_mirror_image_is_turned_back"),
    Mutant("DeepLab: the loss divides by all pixels, ignored ones too", "methods/segmentation.py",
           "known = label_map != self.ignore", "known = label_map >= 0",
           "test_segmentation.py::test_the_loss_is_the_mean_over_the_labelled_pixels"),
    # ---- networks/ ----
    Mutant("ResNet38d: the first unit of b5 is dilated at once", "networks/resnet38d.py",
           "Block(c_in, c_mid, c_out, stride, 1, dilation)", "Block(c_in, c_mid, c_out, stride, dilation, dilation)",
           "test_resnet38d.py::test_forward_of_psa_and_feature_taps"),
    Mutant("ResNet38d: the skip waits beside the whole branch", "networks/resnet38d.py",
           "        y = self.conv_branch2b2(y)\n        return y.add_(self.conv_branch1(activated)), activated",
           "        skip = self.conv_branch1(activated)\n        return self.conv_branch2b2(y).add_(skip), activated",
           "test_memory.py::test_a_residual_unit_holds_its_widest_maps_alone"),
    Mutant("ResNet38d: a frozen unit is computed again, for more memory", "networks/resnet38d.py",
           "self.recomputed and any(parameter.requires_grad for parameter in unit.parameters())", "self.recomputed",
           "test_frozen.py::test_computed_again_they_give_the_same_bits"),
    Mutant("frozen BatchNorm: its weight is missing in the backward pass", "networks/frozen.py",
           "scale = weight * scale", "scale = 1 * scale",
           "test_frozen.py::test_the_bits_and_gradients_are_torchs_own"),
    Mutant("depthwise convolution: the filters are not turned in the backward pass", "networks/backbones.py",
           "weight.flip(2, 3)", "weight", "test_backbones.py::test_the_fast_backward_of_a_depthwise_convolution"),
    Mutant("timm: features are not shifted onto what they show", "networks/backbones.py",
           "round((left + shift) / tap_stride)", "round(left / tap_stride)",
           "test_backbones.py::test_a_small_object_stays_under_its_map[resnet50-16]"),
    Mutant("weights: MXNet's gamma and beta change places", "networks/mxnet.py",
           '{"gamma": "weight", "beta": "bias",', '{"gamma": "bias", "beta": "weight",',
           "test_pretrained.py::test_params_names_become_the_authors"),
    Mutant("optimizer: biases decay", "networks/__init__.py",
           "(2, 0), (10, weight_decay)", "(2, weight_decay), (10, weight_decay)",
           "test_resnet38d.py::test_what_is_trained"),
    # ---- data/ ----
    Mutant("DeepLab's images are mirrored without their labels", "data/transforms.py",
           "image, label_map = mirror(image), mirror(label_map)", "image = mirror(image)",
           "test_segmentation.py::test_image_and_labels_are_changed_alike"),
    Mutant("AffinityNet's images are mirrored without their maps", "data/transforms.py",
           "mirror(image), [scores[:, ::-1] for scores in maps]", "mirror(image), maps",
           "test_aff_stages.py::test_picture_and_labels_are_changed_alike"),
    Mutant("crop: the border of a label map is background", "data/transforms.py",
           "torch.from_numpy(crop(label_map, crop_size, offsets, fill=255))",
           "torch.from_numpy(crop(label_map, crop_size, offsets))",
           "test_segmentation.py::test_image_and_labels_are_changed_alike"),
    Mutant("crop: the last place is never drawn", "data/transforms.py",
           "rng.integers(abs(extent - size) + 1)", "rng.integers(max(1, abs(extent - size)))",
           "test_transforms.py::test_drawn_crops_cover_all_places_and_only_those"),
    Mutant("resize: label maps are mixed", "data/transforms.py",
           "Image.Resampling.NEAREST", "Image.Resampling.BILINEAR",
           "test_segmentation.py::test_scaled_labels_are_not_mixed"),
    Mutant("normalisation: the mean of blue for red", "data/transforms.py",
           "MEAN = (0.485, 0.456, 0.406)", "MEAN = (0.406, 0.456, 0.485)",
           "test_transforms.py::test_normalize_is_the_authors"),
    Mutant("labels: an object's parts count as objects", "data/labels.py",
           'tree.iterfind("{*}object/{*}name")', 'tree.iterfind(".//{*}name")',
           "test_dataset.py::test_labels_from_xml_are_the_authors"),
    Mutant("labels: COCO's crowds are background", "data/prepare/coco_masks.py",
           "labels[decode(rle)] = IGNORE", "labels[decode(rle)] = 0",
           "test_prepare_coco.py::test_smaller_objects_lie_on_larger_ones_and_crowds_are_ignored"),
    Mutant("lists: a class gives its share to val again", "data/prepare/splits.py",
           'have = sum(splits.get(n) == "val"', 'have = 0 * sum(splits.get(n) == "val"',
           "test_prepare_folder.py::test_each_class_gives_its_share_to_val"),
    Mutant("images: EXIF's orientation is ignored", "data/images.py",
           "        ImageOps.exif_transpose(image, in_place=True)\n", "",
           "test_dataset.py::test_exif_orientation_is_applied"),
    Mutant("samples: every epoch draws the same augmentation", "data/dataset.py",
           'rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])\n        item = {"image"',
           'rng = np.random.default_rng([self.seed, 0, index, AUGMENT_STREAM])\n        item = {"image"',
           "test_dataset.py::test_a_sample_depends_on_seed_epoch_and_index_alone"),
    Mutant("samples: DeepLab learns the ground truth", "data/dataset.py",
           "self.layout.read_label_map(self.ids[index], self.label_dir)", "self.layout.ground_truth(self.ids[index])",
           "test_segmentation.py::test_an_item_depends_on_seed_epoch_and_index_alone"),
    Mutant("batches: every epoch has the same order", "data/loader.py",
           "default_rng([self.seed, epoch])", "default_rng([self.seed, 0])",
           "test_loader.py::test_each_epoch_is_another_permutation_without_its_remainder"),
    Mutant("batches: a restart begins with the first ones", "data/loader.py",
           "epoch, number, _ = self.place_of(step)", "epoch, number, _ = self.place_of(step - start)",
           "test_loader.py::test_a_restart_resumes_with_the_same_sequence"),
    Mutant("batches: two processes take the same images", "data/loader.py",
           "members[self.rank :: self.world]", "members[0 :: self.world]",
           "test_loader.py::test_processes_share_each_batch"),
    Mutant("signatures: of a file the start alone", "data/signatures.py",
           "sorted({0, last // 2, last})", "sorted({0})",
           "test_signatures.py::test_a_large_file_is_told_by_its_start_middle_and_end"),
    Mutant("signatures: maps of changed images stay", "tools/signatures.py",
           "    delete(folder / name for i in set().union(*changed.values()) for name in there[i])\n", "",
           "test_signatures.py::test_overwrite_makes_the_maps_of_changed_images_again_and_only_theirs"),
    # ---- scores: tools/, and the stages that write them ----
    Mutant("threshold: a score equal to it is an object", "tools/metrics.py",
           "np.searchsorted(edges, best)", 'np.searchsorted(edges, best, side="right")', "test_metrics.py"),
    Mutant("threshold: a score equal to one of many even ones is an object", "tools/metrics.py",
           "best > edges.take(nearest)", "best >= edges.take(nearest)", "test_metrics.py"),
    Mutant("threshold: those below the first are searched", "tools/metrics.py", "low + i * step", "low - i * step",
           "test_metrics.py::test_the_range_of_thresholds"),
    Mutant("threshold: the last is left out", "tools/metrics.py", "(high - low) / step + 1e-6) + 1",
           "(high - low) / step) + 1", "test_metrics.py::test_the_range_of_thresholds"),
    Mutant("argmax: on a tie the higher class", "tools/metrics.py",
           "where=scores[k] > best", "where=scores[k] >= best",
           "test_metrics.py::test_sweep_is_bit_equal_to_one_threshold_at_a_time"),
    Mutant("mIoU: ignored pixels count as false positives", "tools/metrics.py",
           "reshape(n + 1, n)[:n]", "reshape(n + 1, n)[1:]", "test_metrics.py::test_a_hand_computed_case"),
    Mutant("mIoU: counters of 32 bits", "tools/metrics.py",
           "np.zeros((num_classes + 1, num_classes + 1), np.int64)    # 32 bits overflow on COCO",
           "np.zeros((num_classes + 1, num_classes + 1), np.int32)",
           "test_metrics.py::test_counters_do_not_wrap_at_32_bits"),
    Mutant("evaluation: precision divides by the ground truth", "evaluation.py",
           "precision = 100 * hit / np.maximum(matrix.sum(0)", "precision = 100 * hit / np.maximum(matrix.sum(1)",
           "test_metrics.py::test_precision_is_of_what_is_predicted_and_recall_of_what_is_there"),
    Mutant("evaluation: the worst threshold for the best", "evaluation.py",
           "int(np.argmax(mious[:len(searched)]))", "int(np.argmin(mious[:len(searched)]))",
           "test_report.py::test_the_score_of_a_picture_is_that_of_evaluation_on_it_alone"),
    Mutant("evaluation: the fixed threshold's mIoU is the best one's", "evaluation.py",
           '"fixed_miou": mious[fixed]', '"fixed_miou": mious[best]',
           "test_report.py::test_the_score_of_a_picture_is_that_of_evaluation_on_it_alone"),
    Mutant("evaluation: of CRF maps the row, not the class", "evaluation.py",
           "return classes[scores.argmax(0)].reshape(scores.shape[1:])", "return scores.argmax(0)",
           "test_report.py::test_the_score_of_a_picture_is_that_of_evaluation_on_it_alone"),
    Mutant("intrusion: background counts as another object", "tools/activation.py",
           "_sum(score, objects & ~own)", "_sum(score, counted & ~own)", "test_activation.py::test_by_hand"),
    Mutant("erased fraction: of all pixels", "tools/activation.py",
           "self.on_target[c] += _sum(score, own)", "self.on_target[c] += _sum(score, counted)",
           "test_activation.py::test_by_hand"),
    Mutant("CRF: the background's alpha before the 1 -", "tools/crf.py",
           "(1 - scores.max(axis=0, keepdims=True, initial=0)) ** alpha",
           "1 - scores.max(axis=0, keepdims=True, initial=0) ** alpha", "test_crf.py::test_background_by_hand"),
    Mutant("CRF: the unary is negative", "tools/crf.py",
           "crf.setUnaryEnergy(unary_from_softmax(scores))", "crf.setUnaryEnergy(-unary_from_softmax(scores))",
           "test_crf.py::test_equals_the_authors"),
    Mutant("maps: keys of the authors' CAMs count from 1", "tools/maps.py",
           "table = {int(c) - first:", "table = {int(c):", "test_maps.py::test_maps_come_back"),
    Mutant("maps of others: the background is a class that no label names", "tools/map_classes.py",
           "fit = sum(shown - {0} <= label", "fit = sum(shown <= label",
           "test_foreign_maps.py::test_no_label_names_the_background"),
    Mutant("report: gains are over the stage before, not the first experiment", "comparison.py",
           'column["before"] = columns[0]["folder"]', 'column["before"] = columns[-1]["folder"]',
           "test_compare.py::test_the_same_images_in_columns_as_given"),
    Mutant("report: a CAM's threshold is left out", "tools/report.py",
           "np.full((1, *scores.shape[1:]), threshold, np.float32)", "np.zeros((1, *scores.shape[1:]), np.float32)",
           "test_report.py::test_the_score_of_a_picture_is_that_of_evaluation_on_it_alone"),
    Mutant("tables: rows of one model share their training", "tables.py",
           "if _training(other, recipe) == wanted", "if other.model == row.model",
           "test_tables.py::test_rows_that_are_the_same_training_share_it"),
    Mutant("tables: of several CRFs the worst", "results.py",
           'found["miou"] > numbers["crf"]', 'found["miou"] < numbers["crf"]',
           "test_tables.py::test_of_several_crfs_the_best_is_shown"),
    Mutant("tables: the spread is that of all seeds there are", "results.py",
           "np.std(values, ddof=1)", "np.std(values)", "test_tables.py::test_seeds_have_a_spread"),
    Mutant("AffinityNet's walk: of pseudo labels the row, not the class", "infer_aff.py",
           "classes[scores.argmax(0)])", "scores.argmax(0))",
           "test_aff_stages.py::test_a_label_is_a_class_and_the_walk_gets_its_flags"),
    Mutant("AffinityNet's walk: the CRF gets the rows as the first classes", "infer_aff.py",
           "scores[classes] = walked", "scores[:len(walked)] = walked",
           "test_aff_stages.py::test_what_the_crf_is_given_is_the_authors"),
    Mutant("AffinityNet's walk: dup and beta change places", "infer_aff.py",
           "settings.dup, settings.beta,", "settings.beta, settings.dup,",
           "test_aff_stages.py::test_a_label_is_a_class_and_the_walk_gets_its_flags"),
    Mutant("DeepLab: the score of each window is that of its corner", "infer_seg.py",
           "[first_row - top:last_row - top, first - left:last - left]",
           "[:last_row - first_row, :last - first]",
           "test_segment_photos.py::test_a_pixel_keeps_its_place_in_every_tile"),
    # ---- training, and files ----
    Mutant("processes: the maximum's gradient goes to all", "tools/distributed.py",
           "return gradient * ctx.holds_it", "return gradient",
           "test_distributed.py::test_the_gradient_of_the_maximum_goes_to_its_holder"),
    Mutant("processes: rows are gathered one process after the other", "tools/distributed.py",
           "torch.stack(parts, 1).flatten(0, 1)", "torch.stack(parts).flatten(0, 1)",
           "test_distributed.py::test_two_processes_train_as_one"),
    Mutant("processes: gathered rows get their own process's gradient alone", "tools/distributed.py",
           "        dist.all_reduce(gradient)\n        return gradient[rank()", "        return gradient[rank()",
           "test_distributed.py::test_two_processes_train_as_one"),
    Mutant("processes: a flag counts where all have set it", "tools/distributed.py", "ReduceOp.MAX", "ReduceOp.MIN",
           "test_distributed.py::test_what_processes_tell_each_other"),
    Mutant("processes: BatchNorm's running variance is the biased one", "tools/distributed.py",
           "var * count / (count - 1)", "var", "test_distributed.py::test_a_batchnorm_over_processes_is_torchs_own_over"
           "_the_batch"),
    Mutant("processes: the main one's error stays its own", "tools/distributed.py", "if box[1] is not None:",
           "if box[1] == '':", "test_distributed.py::test_the_main_process_goes_first"),
    Mutant("processes: one of several ends with exit code 0", "tools/distributed.py", "os._exit(code or 0)",
           "os._exit(0)", "test_distributed.py::test_one_of_several_processes_ends_before_python_is_taken_down"),
    Mutant("augmentation: the largest size is never drawn", "data/transforms.py", "resize[1] + 1", "resize[1]",
           "test_transforms.py::test_augment_draws_every_size_and_both_sides"),
    Mutant("jitter: the hue turns to the nearest step", "data/transforms.py", "int(turn * 255)", "round(turn * 255)",
           "test_transforms.py::test_jitter_is_torchvision_to_the_bit"),
    Mutant("jitter: colours change after the crop", "data/transforms.py",
           "    image = np.asarray(jitter(image, rng, *jitter_amounts))\n    offsets = draw_crop(*image.shape[:2], "
           "crop_size, rng)\n    image = crop(image, crop_size, offsets)\n",
           "    image = np.asarray(image)\n    offsets = draw_crop(*image.shape[:2], "
           "crop_size, rng)\n    image = jitter(crop(image, crop_size, offsets), rng, *jitter_amounts)\n",
           "test_transforms.py::test_affinitynets_colours_change_before_anything_is_cut"),
    Mutant("images: 16-bit gray is cut at 255", "data/images.py", "np.asarray(image) / 257", "np.asarray(image)",
           "test_dataset.py::test_16_bit_gray_is_scaled"),
    Mutant("samples: every epoch draws the same target", "data/dataset.py",
           "[self.seed, epoch, index, TARGET_STREAM]", "[self.seed, 0, index, TARGET_STREAM]",
           "test_dataset.py::test_a_sample_depends_on_seed_epoch_and_index_alone"),
    Mutant("signatures: photos of the same size are the same", "data/signatures.py",
           "status.st_mtime_ns, _checksum(path, status)]", "status.st_mtime_ns, 0]",
           "test_signatures.py::test_other_photos_of_the_same_sizes_are_no_copy"),
    Mutant("signatures: others' maps of the same size are the same", "data/signatures.py",
           "        checksum = _checksum(path, status, checksum)\n", "        checksum = 0\n",
           "test_signatures.py::test_others_maps_that_are_made_anew_are_no_copy"),
    Mutant("signatures: a copied dataset has changed", "tools/signatures.py", "len(known) > 1", "len(known) > 100",
           "test_signatures.py::test_a_moved_or_copied_dataset_is_the_same"),
    Mutant("signatures: one touched photo of two is a copy", "tools/signatures.py", "len(times) == len(known) > 1",
           "len(known) > 1", "test_signatures.py::test_a_photo_that_was_written_again_has_changed"),
    Mutant("signatures: a list in another order is the same", "tools/signatures.py",
           "elif list(old) != list(images.of):", "elif set(old) != set(images.of):",
           "test_signatures.py::test_a_changed_list_is_named"),
    Mutant("own photos: a replaced mask keeps its old label map", "data/prepare/folder.py",
           "target.is_file() and target.stat().st_mtime_ns == source.stat().st_mtime_ns", "target.is_file()",
           "test_prepare_folder.py::test_a_mask_that_was_replaced_is_read_again"),
    Mutant("own photos: a mask is turned the other way", "data/prepare/masks.py", "6: Image.Transpose.ROTATE_270",
           "6: Image.Transpose.ROTATE_90", "test_prepare_folder.py::test_a_mask_follows_its_photos_exif"),
    Mutant("own photos: masks of other classes are taken", "data/prepare/folder.py",
           "if not found & set(names[name])]", "if not found]",
           "test_prepare_folder.py::test_masks_whose_ids_mean_other_classes"),
    Mutant("own photos: the split depends on the order of files", "data/prepare/splits.py",
           "np.random.Generator(np.random.PCG64(seed))", "np.random.default_rng()",
           "test_prepare_folder.py::test_the_split_depends_on_the_seed_alone"),
    Mutant("own photos: a photo that is learned from is scored, too", "data/prepare/splits.py",
           "if both := sorted({*found[train]} & {*found[split]}):", "if both := []:",
           "test_prepare_folder.py::test_lists_that_there_are"),
    Mutant("photos: the windows of a large one have no room at a border", "methods/segmentation.py",
           "(start + side + after) // 2 for", "start + side for",
           "test_segment_photos.py::test_windows_decide_each_pixel_once_with_room_around_it"),
    Mutant("photos: tiles hardly overlap", "infer_seg.py", "settings.tile // 4", "settings.tile // 40",
           "test_segment_photos.py::test_tiles_show_what_a_photo_of_that_part_alone_does"),
    Mutant("photos: the areas of a map that is made anew stay", "tools/areas.py",
           " and place.stat().st_mtime < written", "",
           "test_segment_photos.py::test_a_photo_that_changed_is_segmented_again_and_a_folder_that_moved_is_the_same"),
    Mutant("photos: one photo alone has another ID", "data/photos.py", "Counter(Path(name).stem for name in images)",
           "Counter(Path(name).stem for name in asked)",
           "test_segment_photos.py::test_a_photo_alone_is_named_as_in_its_folder"),
    Mutant("settings: the momentum of most papers, not of this one's authors", "config.py",
           'momentum: float = option(5e-4,', 'momentum: float = option(0.9,',
           "test_config.py::test_the_faithful_recipe_is_the_authors"),
    Mutant("schedule: the rate falls linearly", "tools/engine.py",
           "(1 - min(step, steps - 1) / steps) ** power", "(1 - min(step, steps - 1) / steps)",
           "test_engine.py::test_the_rate_falls_as_a_polynomial_and_stays_after_the_last_step"),
    Mutant("seeds: dropout does not depend on the step", "tools/engine.py",
           "_draw_from(settings.seed, state.step)", "_draw_from(settings.seed, 0)",
           "test_engine.py::test_a_batch_that_is_not_finite_may_be_left_out"),
    Mutant("seeds: dropout draws on after a restart", "tools/engine.py",
           "            _draw_from(settings.seed, state.step)\n", "",
           "test_engine.py::test_killed_and_resumed_equals_uninterrupted"),
    Mutant("resume: a step is left out", "tools/progress.py",
           'self.step, self.meter, self.skipped = int(saved["step"])',
           'self.step, self.meter, self.skipped = int(saved["step"]) + 1',
           "test_engine.py::test_killed_and_resumed_equals_uninterrupted"),
    Mutant("resume: the momentum is forgotten", "tools/progress.py",
           '            self.optimizer.load_state_dict(saved["optimizer"])\n', "",
           "test_engine.py::test_killed_and_resumed_equals_uninterrupted"),
    Mutant("resume: the means of the open epoch begin again", "tools/progress.py",
           'Meter(saved["meter"])', "Meter()", "test_engine.py::test_killed_and_resumed_equals_uninterrupted"),
    Mutant("resume: an epoch cut off while it was measured is never logged", "tools/progress.py",
           "        if self.run.plan.ends_epoch(self.step):\n            self.close_epoch()\n        return True",
           "        return True",
           "test_engine.py::test_killed_while_an_epoch_is_measured_it_is_measured_after_the_restart"),
    Mutant("resume: labels that changed are not seen", "train_seg.py",
           '.encode() + labels.tobytes())', '.encode())',
           "test_segmentation.py::test_labels_have_another_digest_when_a_pixel_changes"),
    Mutant("resume: a training of other settings is deleted unasked", "tools/experiment.py",
           "if overwrite and folder.is_dir() and not _can_resume", "if folder.is_dir() and not _can_resume",
           "test_experiment.py::test_training_opens_anew_only_if_asked"),
    Mutant("log: an epoch that is trained again has two lines", "tools/experiment.py",
           'if r["epoch"] < row["epoch"]', 'if r["epoch"] <= row["epoch"]',
           "test_experiment.py::test_later_lines_of_a_run_cut_off_are_dropped"),
    Mutant("not finite: the step goes into the weights", "tools/engine.py",
           "if distributed.agree(bad)[0]:", "if distributed.agree(False)[0]:",
           "test_engine.py::test_what_is_not_finite_stops_the_run_before_it_is_in_the_weights"),
    Mutant("not finite: BatchNorm keeps the batch that was left out", "tools/engine.py",
           "                    buffer.copy_(value)", "                    pass",
           "test_engine.py::test_a_batch_that_is_not_finite_may_be_left_out"),
    Mutant("tables: a row that nothing runs beside leaves cores idle", "reproduce.py",
           "cores() // min(settings.at_once, len(running) + len(ready))", "cores() // settings.at_once",
           "test_tables.py::test_a_row_prints_to_its_file_with_its_share_of_the_threads"),
    Mutant("recomputed: BatchNorm counts a batch twice", "tools/recompute.py",
           "        layer.momentum = 0.0\n", "        layer.momentum = layer.momentum\n",
           "test_resnet38d.py::test_checkpointed_blocks_give_the_same_bits_in_less_memory"),
    Mutant("weights: the best epoch is the worst", "tools/experiment.py",
           "best = max(scored,", "best = min(scored,", "test_experiment.py::test_weights_of_an_epoch"),
    Mutant("weights: the last epoch is the first", "tools/experiment.py",
           'stem = there[-1] if which == "last"', 'stem = there[0] if which == "last"',
           "test_experiment.py::test_weights_of_an_epoch"),
    Mutant("files: renamed before they are complete", "tools/aside.py",
           "            yield aside\n        if not _kept(aside, path):",
           "            aside.touch()\n            os.replace(aside, path)\n            yield path\n        if False:",
           "test_files.py::test_a_file_is_whole_or_absent"),
    Mutant("files: not flushed before the rename", "tools/aside.py",
           "                list(pool.map(_flush_file, files.values(), files))\n", "",
           "test_aside.py::test_flushed_before_the_rename_and_the_folder_after"),
    Mutant("files: the folder is not flushed after the rename", "tools/aside.py",
           "                list(pool.map(flush_folder, {path.parent for path in files}))\n", "",
           "test_aside.py::test_flushed_before_the_rename_and_the_folder_after"),
    Mutant("files: the name of a checkpoint is not flushed", "tools/files.py",
           "        flush_folder(Path(path).parent)", "        pass",
           "test_aside.py::test_a_checkpoint_is_flushed_at_once_and_its_name_too"),
    Mutant("files: what a power cut left is taken for finished", "tools/experiment.py",
           "(broken := delete_incomplete(folder))", "(broken := [])",
           "test_provenance.py::test_what_a_power_cut_left_is_made_again"),
    Mutant("files: a cut map is taken for complete", "tools/files.py",
           "path.is_file() and not _ends(path)", "path.is_file() and not path.stat().st_size",
           "test_files.py::test_what_a_power_cut_leaves_is_deleted"),
    Mutant("provenance: inputs that changed are not seen", "tools/provenance.py",
           "if digest(path) != old:", "if old == 'unknown' and digest(path) != old:",
           "test_provenance.py::test_a_stale_chain_is_found"),
    Mutant("files: maps of other settings are deleted unasked", "tools/experiment.py",
           "if not overwrite and any(", "if False and any(",
           "test_provenance.py::test_another_claim_is_refused_by_name"),
    Mutant("provenance: a folder of other settings is kept", "tools/provenance.py",
           "    words += _differing(old, new, skipped)\n", "",
           "test_provenance.py::test_another_claim_is_refused_by_name"),
]


def main():
    args = parse()
    chosen = [mutant for mutant in MUTANTS if args.only.lower() in mutant.name.lower()]
    if not chosen:
        raise SystemExit(f"--only {args.only}: in no mutant's name; --list shows them")
    if args.list:
        print("\n".join(f"{mutant.name}  ({mutant.file}; {mutant.tests})" for mutant in chosen))
        return
    os.environ.update(ALONE)
    with TemporaryDirectory() as folder:
        tree, begun, caught = copy_product(Path(folder) / "tree"), time.monotonic(), 0
        require_clean(tree, chosen)
        print(f"The tests of {len(chosen)} mutants pass without them, {time.monotonic() - begun:.0f} s", flush=True)
        begun = time.monotonic()
        for number, mutant in enumerate(chosen, 1):
            before = time.monotonic()
            with broken(tree, mutant):
                failed = first_failure(tree, mutant)
            caught, now = caught + bool(failed), time.monotonic()
            left = (now - begun) / number * (len(chosen) - number) / 60
            print(f"{number:3}/{len(chosen)}  {'caught' if failed else 'NOT CAUGHT':<10}  {mutant.name}: "
                  f"{failed or mutant.tests}, {now - before:.1f} s; {left:.1f} min left", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    raise SystemExit(caught < len(chosen))


def parse():
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="the mutants whose names hold it")
    parser.add_argument("--list", action="store_true", help="show them, run none")
    return parser.parse_args()


def copy_product(tree):
    """Copy the files that git knows, and new ones that it does not ignore, as they are now; returns the copy."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in {name for name in names if (ROOT / name).is_file()}:        # one that was deleted is in the index still
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


def require_clean(tree, mutants):
    """Stop unless all tests of the mutants pass on the copy: a failure means something only then."""
    code, printed = run_tests(tree, *dict.fromkeys(test for mutant in mutants for test in mutant.tests.split()))
    if code or "skipped" in printed.splitlines()[-1]:
        raise SystemExit(f"{printed}\nThese tests fail or are skipped without any mutant: they would tell nothing")


@contextmanager
def broken(tree, mutant):
    """Break a line of the copy."""
    path = tree / mutant.file
    whole = path.read_text("utf-8")
    path.write_text(mutated(whole, mutant), "utf-8")
    try:
        yield
    finally:
        path.write_text(whole, "utf-8")


def mutated(text, mutant):
    """Break a line in the text of a file; ValueError unless it is there once."""
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text is in {mutant.file} {count} times, not once")
    return text.replace(mutant.old, mutant.new)


def first_failure(tree, mutant):
    """Name the first test that fails; None if all pass. ValueError where they did not run."""
    code, printed = run_tests(tree, "-x", *mutant.tests.split())
    if code not in (0, 1):
        raise ValueError(f"mutant {mutant.name!r}: its tests did not run\n{printed}")
    return re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", printed, re.M)[1] if code else None


def run_tests(tree, *words):
    """Run pytest in a process of its own; returns its exit code and what it printed.

    It is forked from this one, which has loaded what takes seconds and nothing of the product.
    """
    import hypothesis  # noqa: F401
    import pytest
    import torch  # noqa: F401

    words = [word if word.startswith("-") else f"tests/{word}" for word in words]
    with TemporaryFile() as printed:
        if not (child := os.fork()):
            for stream in (1, 2):
                os.dup2(printed.fileno(), stream)
            os.chdir(tree)
            sys.path[0] = str(tree)         # in place of the working tree
            del sys.modules["tests"]
            code = pytest.main(["-q", "-p", "no:cacheprovider", f"--basetemp={tree.with_name('pytest')}", *words])
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return code, printed.read().decode()


if __name__ == "__main__":
    main()
