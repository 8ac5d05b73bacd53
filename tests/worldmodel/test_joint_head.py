"""Joints read from latents, and how far they are off."""

import math

import pytest
import torch

from worldmodel.joint_head import JointHead
from worldmodel.state_errors import joint_error


def test_a_gripper_that_is_read_stays_within_its_range_and_joints_do_not() -> None:
    head = JointHead(size=3, latent_dim=12, num_tokens=4)
    for mean, gripper in ((5.0, 1.0), (-5.0, 0.0)):
        head.joints_mean.fill_(mean)
        read = head(torch.randn(2, 4, 12))
        assert (read[:, -1] == gripper).all() and (read[:, :-1].abs() > 3).all()


def test_errors_of_joints_are_in_degrees_and_the_worst_is_named() -> None:
    true = torch.zeros(4, 3)
    read = torch.tensor([math.radians(1.0), math.radians(-5.0), 0.1]).expand(4, 3)
    error = joint_error(read, true)
    assert error.joints_deg == pytest.approx(3.0, rel=1e-5)
    assert error.worst_joint_deg == pytest.approx(5.0, rel=1e-5)
    assert error.gripper == pytest.approx(0.1) and error.gripper_accuracy == 1.0
