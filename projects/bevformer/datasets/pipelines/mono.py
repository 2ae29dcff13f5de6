"""The last step of a pipeline for a model with a perspective head."""

from mmdet3d.datasets.builder import PIPELINES


@PIPELINES.register_module()
class DD3DMapper:
    """Turn the objects of the single cameras into targets on the augmented images.

    Comes after CustomCollect3D, which must collect `mono_input_dict` and `aug_param`.

    Args:
        is_train: accepted because published configs give it; only True is possible.
        tasks: accepted because published configs give it; both tasks are always on.

    Raises:
        ValueError: an option that is not possible.
    """

    def __init__(self, is_train=True, tasks=None):
        if not is_train or not all((tasks or {}).values()):
            raise ValueError("DD3DMapper has is_train=True and all tasks on only")

    def __call__(self, results):
        """Replace `mono_input_dict`, N CameraObjects, by {camera: dict} of the cameras that see one.

        Returns:
            The results; None where no camera sees an object. Frames without `mono_input_dict` (those
            beside the current one) stay as they are.

        Raises:
            ValueError: CropResizeFlipImage has not run.
        """
        cameras = results["mono_input_dict"]
        if cameras is None:
            return results
        if "CropResizeFlipImage" not in results["aug_param"]:
            raise ValueError("DD3DMapper needs CropResizeFlipImage earlier in the pipeline")
        source_hw = results["aug_param"]["CropResizeFlipImage"]["source_hw"]
        meta = results["img_metas"].data
        seen = {}
        for index, objects in enumerate(cameras):
            intrinsics, shape = meta["cam2img"][index][:3, :3], meta["ori_shape"][index]
            targets = objects.in_image(intrinsics, source_hw, shape[:2])
            if len(targets["label"]):
                seen[index] = targets
        if not seen:
            return None
        results["mono_input_dict"] = seen
        return results

    def __repr__(self):
        return "DD3DMapper()"
