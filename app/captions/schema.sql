CREATE TABLE IF NOT EXISTS caption_tasks (
  id            VARCHAR(36)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  user_id       INT NOT NULL,
  status        ENUM('queued','running','completed','failed','cancelled') NOT NULL DEFAULT 'queued',
  priority      ENUM('urgent','high','normal','low') NOT NULL DEFAULT 'normal',
  image_path    VARCHAR(255) NOT NULL DEFAULT '',
  caption       TEXT NULL,
  error         TEXT NULL,
  attempts      INT NOT NULL DEFAULT 0,
  max_attempts  INT NOT NULL DEFAULT 3,
  available_at  DATETIME(6) NOT NULL,
  created_at    DATETIME(6) NOT NULL,
  started_at    DATETIME(6) NULL,
  finished_at   DATETIME(6) NULL,
  worker        VARCHAR(80) NULL,
  lease_until   DATETIME(6) NULL,
  custody       ENUM('db','held','rq') NOT NULL DEFAULT 'db',
  custody_token BIGINT NOT NULL DEFAULT 0,
  enqueued_at   DATETIME(6) NULL,
  active_user   INT AS (IF(status IN ('queued','running'), user_id, NULL)) PERSISTENT,
  UNIQUE KEY one_active_per_user (active_user),
  KEY claim_order (custody, status, priority, created_at, id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS captions_control (
  id            INT PRIMARY KEY,
  rq_share      INT NOT NULL DEFAULT 0,
  intake        ENUM('open','paused') NOT NULL DEFAULT 'open',
  intake_reason VARCHAR(200) NULL,
  intake_until  DATETIME(6) NULL,
  emergency     TINYINT NOT NULL DEFAULT 0,
  polling       TINYINT NOT NULL DEFAULT 1
) ENGINE=InnoDB;

ALTER TABLE caption_tasks
  ADD COLUMN IF NOT EXISTS kind           VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'caption',
  ADD COLUMN IF NOT EXISTS payload        VARCHAR(1023) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  ADD COLUMN IF NOT EXISTS error_category VARCHAR(20) CHARACTER SET ascii NULL,
  ADD COLUMN IF NOT EXISTS progress       TINYINT UNSIGNED NOT NULL DEFAULT 0,
  ADD COLUMN IF NOT EXISTS progress_note  VARCHAR(200) NULL;

ALTER TABLE captions_control
  ADD COLUMN IF NOT EXISTS paused_queues VARCHAR(1000) CHARACTER SET ascii NOT NULL DEFAULT '',
  ADD COLUMN IF NOT EXISTS rq_workers    VARCHAR(1000) CHARACTER SET ascii NULL,
  ADD COLUMN IF NOT EXISTS planned_from   DATETIME(6) NULL,
  ADD COLUMN IF NOT EXISTS planned_until  DATETIME(6) NULL,
  ADD COLUMN IF NOT EXISTS planned_reason VARCHAR(200) NULL;

INSERT IGNORE INTO captions_control (id) VALUES (1);
