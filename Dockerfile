# One image for all processes of Gigafactory; docker-compose.yml says which one a container runs. The engines' CLIs are
# not in it: extend it for a factory, see docs/how-to/deploy.md.
FROM python:3.11.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home gigafactory \
    && install -d -o gigafactory -g gigafactory -m 0700 /var/lib/gigafactory /var/lib/factory

COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock && rm /tmp/requirements.lock

COPY . /app
RUN python -m compileall -q /app

ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    GIGAFACTORY_HOME=/var/lib/gigafactory
WORKDIR /var/lib/gigafactory
USER gigafactory
EXPOSE 4410
CMD ["python", "-P", "-m", "api"]
