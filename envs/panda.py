"""The arm: a Franka Panda with a parallel jaw, drawn with primitive shapes, so no mesh files.

Joint frames (Craig's DH: d1 0.333, d3 0.316, a4 0.0825, a5 -0.0825, d5 0.384, a7 0.088, flange
0.107 m), position and torque limits are Franka's published figures; masses and inertias are those
of franka_ros. Servo gains are those commonly used for this arm in simulation; damping is a tenth of
the stiffness. The jaw has the 85 mm stroke and outline of a Robotiq 2F-85, as two sliding fingers.

Gripper control runs from 0, open, to 1, closed, and saturates at 60 N. The site ``tcp`` lies
between the finger pads; its z axis points out of the hand.
"""

import numpy as np

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
SERVOS = tuple(f"servo{i}" for i in range(1, 8))
FINGERS = ("finger_right", "finger_left")
FINGER_STROKE = 0.0425  # [m] each, at fully open

HOME_JOINTS = np.array([0.0, -0.45, 0.0, -2.35, 0.0, 1.9, np.pi / 4])  # [rad] gripper downward

STIFFNESS = np.array([4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0])  # [Nm/rad]
DAMPING = STIFFNESS / 10  # [Nm s/rad]

MJCF = """
<mujoco model="panda">
  <compiler angle="radian" autolimits="true"/>
  <default>
    <default class="arm">
      <joint axis="0 0 1" damping="1" armature="0.1" range="-2.8973 2.8973"/>
      <geom type="capsule" group="2" rgba="0.90 0.91 0.92 1"/>
      <default class="look">
        <geom contype="0" conaffinity="0" mass="0"/>
      </default>
      <default class="ring">
        <geom type="cylinder" contype="0" conaffinity="0" mass="0" rgba="0.23 0.24 0.26 1"/>
      </default>
    </default>
    <default class="jaw">
      <joint type="slide" axis="0 1 0" range="0 0.0425" damping="10" armature="0.05"
             solreflimit="0.005 1"/>
      <geom type="box" group="2" rgba="0.17 0.17 0.19 1"/>
      <default class="pad">
        <geom size="0.011 0.004 0.019" mass="0.01" rgba="0.45 0.45 0.48 1" condim="4"
              friction="1.5 0.02 0.0001" solref="0.01 1" solimp="0.95 0.99 0.001" priority="1"/>
      </default>
    </default>
  </default>
  <worldbody>
    <body name="link0" childclass="arm">
      <inertial mass="0.629769" pos="-0.041018 -0.00014 0.049974"
                fullinertia="0.00315 0.00388 0.004285 8.2904e-7 0.00015 8.2299e-6"/>
      <geom fromto="-0.08 0 0.06 0 0 0.06" size="0.06"/>
      <geom class="look" type="cylinder" fromto="0 0 0 0 0 0.14" size="0.066"/>
      <body name="link1" pos="0 0 0.333">
        <inertial mass="4.970684" pos="0.003875 0.002081 -0.04762"
                  fullinertia="0.70337 0.70661 0.0091170 -0.00013900 0.0067720 0.019169"/>
        <joint name="joint1"/>
        <geom fromto="0 0 -0.17 0 0 -0.02" size="0.062"/>
        <geom class="ring" fromto="0 0 -0.195 0 0 -0.183" size="0.0635"/>
        <body name="link2" quat="1 -1 0 0">
          <inertial mass="0.646926" pos="-0.003141 -0.02872 0.003495"
                    fullinertia="0.0079620 0.028110 0.025995 -0.003925 0.010254 0.000704"/>
          <joint name="joint2" range="-1.7628 1.7628"/>
          <geom fromto="0 0 -0.06 0 0 0.06" size="0.062"/>
          <geom fromto="0 -0.06 0 0 -0.16 0" size="0.058"/>
          <body name="link3" pos="0 -0.316 0" quat="1 1 0 0">
            <inertial mass="3.228604" pos="0.027518 0.039252 -0.066502"
                      fullinertia="0.037242 0.036155 0.01083 -0.004761 -0.011396 -0.012805"/>
            <joint name="joint3"/>
            <geom fromto="0 0 -0.14 0 0 -0.03" size="0.058"/>
            <geom class="ring" fromto="0 0 -0.165 0 0 -0.153" size="0.0605"/>
            <geom fromto="0.0825 0.05 0 0.0825 -0.05 0" size="0.056"/>
            <geom class="look" fromto="0 0 -0.03 0.0825 0 0" size="0.055"/>
            <body name="link4" pos="0.0825 0 0" quat="1 1 0 0">
              <inertial mass="3.587895" pos="-0.05317 0.104419 0.027454"
                        fullinertia="0.025853 0.019552 0.028323 0.007796 -0.001332 0.008641"/>
              <joint name="joint4" range="-3.0718 -0.0698"/>
              <geom fromto="-0.0825 0.07 0 -0.0825 0.14 0" size="0.056"/>
              <geom class="look" fromto="0 0 0 -0.0825 0.08 0" size="0.052"/>
              <geom class="ring" fromto="0 0 -0.066 0 0 0.066" size="0.044"/>
              <body name="link5" pos="-0.0825 0.384 0" quat="1 -1 0 0">
                <inertial mass="1.225946" pos="-0.011953 0.041065 -0.038437"
                          fullinertia="0.035549 0.029474 0.008627 -0.002117 -0.004037 0.000229"/>
                <joint name="joint5"/>
                <geom fromto="0 0 -0.24 0 0 -0.2" size="0.056"/>
                <geom class="ring" fromto="0 0 -0.2 0 0 -0.188" size="0.0585"/>
                <geom fromto="0 0.06 -0.19 0 0.08 -0.04" size="0.028"/>
                <geom fromto="0 0 -0.05 0 0 0.02" size="0.052"/>
                <body name="link6" quat="1 1 0 0">
                  <inertial mass="1.666555" pos="0.060149 -0.014117 -0.010517"
                            fullinertia="0.001964 0.004354 0.005433 0.000109 -0.001158 0.000341"/>
                  <joint name="joint6" range="-0.0175 3.7525"/>
                  <geom fromto="0 0 -0.07 0 0 0.02" size="0.048"/>
                  <geom class="look" fromto="0 0 0 0.088 0 0" size="0.046"/>
                  <body name="link7" pos="0.088 0 0" quat="1 1 0 0">
                    <inertial mass="0.735522" pos="0.010517 -0.004252 0.061597" fullinertia="
                              0.012516 0.010027 0.004815 -0.000428 -0.001196 -0.000741"/>
                    <joint name="joint7"/>
                    <geom fromto="0 0 -0.03 0 0 0.06" size="0.045"/>
                    <geom class="ring" fromto="0 0 0.09 0 0 0.107" size="0.034"/>
                    <body name="hand" pos="0 0 0.107" quat="0.9238795 0 0 -0.3826834"
                          childclass="jaw">
                      <inertial mass="0.85" pos="0 0 0.05" diaginertia="0.0012 0.0009 0.0007"/>
                      <geom type="cylinder" fromto="0 0 0 0 0 0.02" size="0.037"/>
                      <geom pos="0 0 0.055" size="0.028 0.045 0.04"/>
                      <site name="tcp" pos="0 0 0.149" group="5"/>
                      <body name="finger_right" pos="0 0 0.149">
                        <inertial mass="0.06" pos="0 0.012 -0.02" diaginertia="3e-5 3e-5 1e-5"/>
                        <joint name="finger_right"/>
                        <geom class="pad" pos="0 0.004 0"/>
                        <geom pos="0 0.013 -0.012" size="0.012 0.005 0.032"/>
                        <geom pos="0 0.013 -0.045" size="0.013 0.008 0.022"
                              rgba="0.45 0.45 0.48 1"/>
                      </body>
                      <body name="finger_left" pos="0 0 0.149" quat="0 0 0 1">
                        <inertial mass="0.06" pos="0 0.012 -0.02" diaginertia="3e-5 3e-5 1e-5"/>
                        <joint name="finger_left"/>
                        <geom class="pad" pos="0 0.004 0"/>
                        <geom pos="0 0.013 -0.012" size="0.012 0.005 0.032"/>
                        <geom pos="0 0.013 -0.045" size="0.013 0.008 0.022"
                              rgba="0.45 0.45 0.48 1"/>
                      </body>
                    </body>
                  </body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <contact>
    <!-- Neighbours overlap at their joint. MuJoCo excludes parent and child by itself, but not
         where the parent is fixed to the world. -->
    <exclude body1="link0" body2="link1"/>
    <exclude body1="link0" body2="link2"/>
    <exclude body1="link1" body2="link3"/>
    <exclude body1="link2" body2="link4"/>
    <exclude body1="link3" body2="link5"/>
    <exclude body1="link4" body2="link6"/>
    <exclude body1="link5" body2="link7"/>
    <exclude body1="link5" body2="hand"/>
    <exclude body1="link6" body2="hand"/>
  </contact>
  <tendon>
    <fixed name="jaw">
      <joint joint="finger_right" coef="0.5"/>
      <joint joint="finger_left" coef="0.5"/>
    </fixed>
  </tendon>
  <equality>
    <joint joint1="finger_right" joint2="finger_left" solref="0.005 1" solimp="0.95 0.99 0.001"/>
  </equality>
  <actuator>
    <position name="servo1" joint="joint1" kp="4500" kv="450" forcerange="-87 87"/>
    <position name="servo2" joint="joint2" kp="4500" kv="450" forcerange="-87 87"/>
    <position name="servo3" joint="joint3" kp="3500" kv="350" forcerange="-87 87"/>
    <position name="servo4" joint="joint4" kp="3500" kv="350" forcerange="-87 87"/>
    <position name="servo5" joint="joint5" kp="2000" kv="200" forcerange="-12 12"/>
    <position name="servo6" joint="joint6" kp="2000" kv="200" forcerange="-12 12"/>
    <position name="servo7" joint="joint7" kp="2000" kv="200" forcerange="-12 12"/>
    <!-- force = 2000 (wanted opening - opening) - 100 speed, wanted opening = 0.0425 (1 - ctrl) -->
    <general name="gripper" tendon="jaw" ctrlrange="0 1" forcerange="-60 60"
             gainprm="-85 0 0" biastype="affine" biasprm="85 -2000 -100"/>
  </actuator>
</mujoco>
"""
