"""The last step of a pipeline for a model with a perspective head."""

from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step
from projects.bevformer.published import published


@PIPELINES.register_module()
@published(only={"is_train": True})
class DD3DMapper(Step):
    """Turn the objects of single cameras into targets on the augmented images.

    Comes after CustomCollect3D, which must collect `mono_input_dict` and `aug_param`.

    Args:
        tasks: None, or a dict of True: all tasks are always on.

    Raises:
        ValueError: a task is off.
    """

    def __init__(self, tasks=None):
        if not all((tasks or {}).values()):
            raise ValueError(f"DD3DMapper cannot turn off a task: set all of tasks={tasks} to True")

    def __call__(self, results):
        """Replace `mono_input_dict`, N CameraObjects, by {camera index: dict} of the cameras that see one.

        Returns:
            The results; None if no camera sees an object. Frames without `mono_input_dict` (all but the
            current one) are returned unchanged.

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
