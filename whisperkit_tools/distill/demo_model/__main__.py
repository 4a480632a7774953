"""Make `python -m whisperkit_tools.distill.demo_model` run the factory, see `make_demo`."""

from whisperkit_tools.distill.demo_model.make_demo import main

if __name__ == "__main__":
    main()
