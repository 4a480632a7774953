"""The Neural Engine lint and the cost model of ML Programs."""
