"""The verbs of `whisperkit_tools`: each module composes rooms that do not know each other for one step of the way.

The package face (`import whisperkit_tools as wkt`) hands the verbs out, and each command of `wkt` calls one of them.
"""
