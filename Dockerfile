FROM python:3.13-slim AS build

WORKDIR /src
COPY pyproject.toml hatch_build.py package.json package-lock.json constraints.txt README.md LICENSE ./
COPY tickcast tickcast
COPY feed feed
COPY producers producers
COPY clients clients

# The constraints also apply to the isolated build; see the Makefile.
ENV PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_NO_CACHE_DIR=1
RUN pip wheel --no-deps --wheel-dir dist . \
    && python -m venv --without-pip /opt/tickcast \
    && pip --python /opt/tickcast/bin/python install dist/*.whl


FROM python:3.13-slim

COPY --from=build /opt/tickcast /opt/tickcast
ENV PATH=/opt/tickcast/bin:$PATH

RUN useradd --create-home --uid 10001 tickcast
USER 10001
WORKDIR /home/tickcast

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["env", "no_proxy=*", "python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["tickcast"]
CMD ["serve", "--host", "0.0.0.0"]
