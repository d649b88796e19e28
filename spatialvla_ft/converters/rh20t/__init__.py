"""RH20T: its folders of robot configurations, calibrations and streams, made into RLDS."""
