"""The OpenVINO model of a student, and its sessions."""
